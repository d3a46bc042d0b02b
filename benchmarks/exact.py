"""What `train.exact` costs a step: the same task with the same shards, its gradients summed in one fixed tree, against DDP's and
FSDP's own sums."""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from pathlib import Path

from side_by_side import BIN, PROGRAMS, Row, in_turn, scratch, seconds_of, table

from dtrain.record.folder import all_runs
from dtrain.record.sample_ledger import LedgerFile

SIZES = {"1 M": (768, 120, 20), "25 M": (4750, 24, 4)}
"""Parameters → (width of the model, steps, steps that do not count)."""
BATCH, SHARDS = 256, 8
NEEDED = 1.10
MOST_SECONDS = 900.0
"""For one run."""


def step_seconds(folder: Path, strategy: str, workers: int, size: str, *, exact: bool) -> float:
    """Median of a run, timed by its own ledger."""
    width, steps, warm = SIZES[size]
    recipe = folder / "exact.yaml"
    options = "{name: fsdp, wrap: [Linear]}" if strategy == "fsdp" else strategy
    recipe.write_text(
        f"task: {PROGRAMS}/million.py:Million\nparams: {{width: {width}}}\nstrategy: {options}\n"
        f"resources: {{workers: {workers}, cpus_per_worker: 1}}\ntrack: []\n"
        f"train: {{steps: {steps}, global_batch: {BATCH}, shards: {SHARDS}, clip_norm: 1.0, exact: {str(exact).lower()}}}\n"
        f"checkpoint: {{every_steps: {steps}}}\n"
    )
    runs = folder / "runs"
    seconds_of([str(BIN / "dtrain"), "run", str(recipe), "--runs", str(runs)], folder, MOST_SECONDS)
    ledger = LedgerFile(all_runs(runs)[-1].ledger(1, 0))
    moments = [entry.time for entry in ledger.read(0, len(ledger))]
    return statistics.median(b - a for a, b in itertools.pairwise(moments[warm:]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--strategies", nargs="*", default=["ddp", "fsdp"])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    rows = []
    with scratch() as name:
        for strategy, size, workers in itertools.product(options.strategies, options.sizes, options.workers):
            side = functools.partial(step_seconds, Path(name), strategy, workers, size)
            ours, theirs = in_turn(
                options.rounds, functools.partial(side, exact=True), functools.partial(side, exact=False)
            )
            rows.append(Row(f"{strategy}, {workers} workers, {size} parameters", ours * 1000, theirs * 1000, NEEDED))
    print(table(f"A step with train.exact (median of {options.rounds} pairs)", "without", rows, unit="ms"))


if __name__ == "__main__":
    main()
