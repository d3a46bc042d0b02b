"""Samples a second on data that takes time to fetch: dtrain's default and its data workers, against torchrun + DDP + PyTorch's
DataLoader with as many workers."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from side_by_side import BIN, PROGRAMS, Row, in_turn, scratch, seconds_of, table, torchrun

from dtrain.record.folder import all_runs
from dtrain.record.sample_ledger import LedgerFile

STEPS, BATCH, WARM_STEPS = 100, 32, 25
CASES = {"decode": "2 ms of CPU a sample", "wait": "5 ms of waiting a sample", "arrays": "arrays in memory"}
NEEDED = 1.0


def seconds_a_step(moments: list[float]) -> float:
    """Mean over all steps but the first ones: batches come in bursts."""
    return (moments[-1] - moments[WARM_STEPS]) / (len(moments) - 1 - WARM_STEPS)


def ours(folder: Path, kind: str, workers: int, data_workers: str) -> float:
    """dtrain's loop, timed by its own ledger."""
    recipe = folder / "samples.yaml"
    recipe.write_text(
        f"task: {PROGRAMS}/samples.py:Task\nparams: {{kind: {kind}}}\nstrategy: ddp\nresources: {{workers: {workers}}}\n"
        f"data: {{workers: {data_workers}}}\ntrain: {{steps: {STEPS}, global_batch: {BATCH}, log_every: {STEPS}}}\n"
    )
    seconds_of([str(BIN / "dtrain"), "run", str(recipe), "--runs", str(folder / "runs")], folder)
    ledger = LedgerFile(all_runs(folder / "runs")[-1].ledger(1, 0))
    return seconds_a_step([entry.time for entry in ledger.read(0, len(ledger))])


def theirs(folder: Path, kind: str, workers: int, data_workers: str) -> float:
    """The loop by hand."""
    out = folder / "times"
    number = "2" if data_workers == "auto" else data_workers
    seconds_of(torchrun("samples.py", workers, arguments=[kind, str(STEPS), str(BATCH), number, str(out)]), folder)
    return seconds_a_step([float(line) for line in out.read_text().splitlines()])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    rows = []
    with scratch() as name:
        folder = Path(name)
        for kind, what in CASES.items():
            for data_workers in ("auto",) if kind == "arrays" else ("2", "4", "auto"):
                sides = (
                    functools.partial(side, folder, kind, options.workers, data_workers) for side in (ours, theirs)
                )
                mine, peers = in_turn(options.rounds, *sides)
                peer = (
                    "DataLoader 0"
                    if kind == "arrays"
                    else f"DataLoader {'2' if data_workers == 'auto' else data_workers}"
                )
                rate = f"{BATCH / mine:,.0f} samples/s, {peer} {BATCH / peers:,.0f}"
                rows.append(Row(f"{what}, data.workers: {data_workers}", mine * 1000, peers * 1000, NEEDED, rate))
    title = f"A step of {BATCH} samples, {options.workers} worker(s) (median of {options.rounds} pairs)"
    print(table(title, "torchrun + DataLoader", rows, unit="ms"))


if __name__ == "__main__":
    main()
