"""What dtrain's own loop costs a step: a DDP model of about a million parameters, against the same loop by hand."""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path

from side_by_side import BIN, PROGRAMS, Row, dtrain, in_turn, scratch, seconds_of, table

from dtrain import ledger
from dtrain.rundir import all_runs

STEPS, BATCH, WARM_STEPS = 300, 256, 50


def median_step(moments: list[float]) -> float:
    """Seconds between two steps, the first ones left out."""
    return statistics.median(b - a for a, b in itertools.pairwise(moments[WARM_STEPS:]))


def managed(folder: Path) -> float:
    """dtrain's loop, timed by its own ledger."""
    recipe = folder / "million.yaml"
    recipe.write_text(
        f"task: {PROGRAMS}/million.py:Million\nstrategy: ddp\nresources: {{workers: 2, cpus_per_worker: 1}}\n"
        f"train: {{steps: {STEPS}, global_batch: {BATCH}, shards: 2}}\ncheckpoint: {{every_steps: {STEPS}}}\n"
    )
    seconds_of([str(BIN / "dtrain"), "run", str(recipe), "--runs", str(folder / "runs")], folder)
    run = all_runs(folder / "runs")[-1]
    return median_step([entry.time for entry in ledger.read(run.ledger(1, 0))])


def by_hand(folder: Path) -> float:
    """The loop written by hand; the same launcher starts it, so that only the loop differs."""
    out = folder / "times"

    command = dtrain(folder, "million.py", 2, [str(STEPS), str(BATCH), str(out)])
    recipe = Path(command[2])
    recipe.write_text(recipe.read_text().replace("{workers: 2}", "{workers: 2, cpus_per_worker: 1}"))
    seconds_of(command, folder)
    return median_step([float(line) for line in out.read_text().splitlines()])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with scratch() as name:
        folder = Path(name)
        ours, theirs = in_turn(rounds, lambda: managed(folder), lambda: by_hand(folder))
        row = Row("a DDP step, 1 M parameters, 2 workers", ours * 1000, theirs * 1000, 1.03)
        print(table(f"The managed loop (median of {rounds} pairs)", "by hand", [row], unit="ms"))


if __name__ == "__main__":
    main()
