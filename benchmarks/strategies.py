"""What dtrain's own loop costs a step, strategy by strategy: a model of about a million parameters, against the same
model in a loop by hand under its framework's own launcher."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import sys
from pathlib import Path

from side_by_side import BIN, PROGRAMS, Row, in_turn, scratch, seconds_of, table, torchrun

from dtrain.record.folder import all_runs
from dtrain.record.sample_ledger import LedgerFile

STEPS, BATCH, WARM_STEPS = 300, 256, 50
CASES = ("ddp", "fsdp", "horovod", "mirrored")
NEEDED = 1.01


def median_step(moments: list[float]) -> float:
    """Seconds between two steps, the first ones left out."""
    return statistics.median(b - a for a, b in itertools.pairwise(moments[WARM_STEPS:]))


def managed(folder: Path, strategy: str, gpus: int) -> float:
    """dtrain's loop, timed by its own ledger."""
    recipe = folder / f"{strategy}.yaml"
    program = "million_tf.py" if strategy == "mirrored" else "million.py"
    options = ", wrap: [Linear]" if strategy == "fsdp" else ""
    recipe.write_text(
        f"task: {PROGRAMS}/{program}:Million\nstrategy: {{name: {strategy}{options}}}\n{_resources(gpus)}\n"
        f"train: {{steps: {STEPS}, global_batch: {BATCH}}}\ncheckpoint: {{every_steps: {STEPS}}}\n"
    )
    runs = folder / "runs"
    seconds_of([str(BIN / "dtrain"), "run", str(recipe), "--runs", str(runs)], folder)
    ledger = LedgerFile(all_runs(runs)[-1].ledger(1, 0))
    return median_step([entry.time for entry in ledger.read(0, len(ledger))])


def _resources(gpus: int) -> str:
    return f"resources: {{workers: {gpus}, device: gpu}}" if gpus else "resources: {workers: 2, cpus_per_worker: 1}"


def by_hand(folder: Path, strategy: str, gpus: int) -> float:
    """The loop written by hand, under the launcher that its framework brings."""
    out = folder / "times"
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = [str(STEPS), str(BATCH), str(out), strategy, "cuda" if gpus else "cpu"]
    if strategy == "mirrored":
        command = [sys.executable, str(PROGRAMS / "million_tf.py"), *arguments]
    elif strategy == "horovod":
        program = [sys.executable, str(PROGRAMS / "million.py")]
        command = [str(BIN / "horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2", *program, *arguments]
    else:
        command = torchrun("million.py", gpus or 2, arguments=arguments)
    seconds_of(command, folder)
    del os.environ["OMP_NUM_THREADS"]
    return median_step([float(line) for line in out.read_text().splitlines()])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--gpus", type=int, default=0, help="train on so many GPUs, under ddp and fsdp")
    options = parser.parse_args()
    rows = []
    with scratch() as name:
        folder = Path(name)
        for strategy in [options.only] if options.only else CASES[:2] if options.gpus else CASES:
            sides = (functools.partial(side, folder, strategy, options.gpus) for side in (managed, by_hand))
            ours, theirs = in_turn(options.rounds, *sides)
            peer = {"mirrored": "plain MirroredStrategy", "horovod": "horovodrun"}.get(strategy, "torchrun")
            rate = f"{BATCH / ours:,.0f} samples/s, {peer} {BATCH / theirs:,.0f}"
            rows.append(Row(strategy, ours * 1000, theirs * 1000, NEEDED, rate))
    devices = f"{options.gpus} GPUs" if options.gpus else "2 workers"
    print(table(f"A step, 1 M parameters, {devices} (median of {options.rounds} pairs)", "by hand", rows, unit="ms"))


if __name__ == "__main__":
    main()
