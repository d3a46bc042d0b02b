"""`train.exact` on the GPT of the recipes: strategies, workers, nodes and chains of events, all of which must end on the same bits.

`python tests/campaign/exact_matrix.py --steps 20`; the first row is the one that the others are compared with."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from live import RECIPES, Live, dtrain, finished, start

from dtrain.checkpoint.difference import first_difference

RECIPE = str(RECIPES / "stdlib_gpt_ddp.yaml")
SIZES = (
    ("ddp", 1, 1), ("ddp", 2, 1), ("ddp", 4, 2), ("ddp", 8, 4), ("fsdp", 2, 1), ("fsdp", 4, 2), ("fsdp", 8, 1), ("hsdp", 4, 2),
    ("hsdp", 8, 2), ("hsdp", 8, 4),
)  # fmt: skip
"""(Strategy, workers, nodes)."""
CHAINS = (
    (("ddp", 8, 2, True), ("fsdp", 2, 1, False), ("ddp", 1, 1, False)),
    (("fsdp", 4, 2, True), ("hsdp", 8, 4, True), ("ddp", 2, 2, True)),
)
"""What trains one part of the steps after the other: (strategy, workers, nodes, whether a rank is killed)."""


def options(strategy: str, workers: int, nodes: int, steps: int) -> tuple[str, ...]:
    return (
        "--set", f"strategy={strategy}", "--workers", str(workers), "--nodes", str(nodes), "--set", "train.exact=true",
        "--set", f"train.steps={steps}", "--set", "train.evaluate_every=null", "--set", "train.evaluate_steps=1", "--set", "track=[]",
        "--set", f"checkpoint.every_steps={max(1, steps // 6)}", "--set", "recovery.backoff_seconds=0",
    )  # fmt: skip


def chained(parts: tuple[tuple[str, int, int, bool], ...], steps: int, runs: Path) -> Live:
    """A run that is stopped and resumed elsewhere."""
    (strategy, workers, nodes, killed), *rest = parts
    until = steps // len(parts)
    with start(RECIPE, *options(strategy, workers, nodes, steps), "--set", f"train.until={until}", runs=runs) as live:
        if killed:
            live.wait_step(max(1, until // 2))
            live.kill(workers - 1)
        live.finish()
    for number, (strategy, workers, nodes, _) in enumerate(rest, start=2):
        end = "null" if number == len(parts) else str(number * steps // len(parts))
        given = ("--set", f"strategy={strategy}", "--workers", str(workers), "--nodes", str(nodes))
        dtrain("resume", str(live.run.path), *given, "--set", f"train.until={end}")
    return live


def main() -> int:
    """Print a row for each; 1 if one of them differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=18)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="exact-") as name:
        folder = Path(name)
        rows = [
            (f"{strategy}, {workers} workers, {nodes} nodes", finished(RECIPE, *options(strategy, workers, nodes, chosen.steps), runs=folder / str(number)))
            for number, (strategy, workers, nodes) in enumerate(SIZES)
        ]  # fmt: skip
        rows += [
            (" then ".join(f"{one[0]} {one[1]}{' killed' if one[3] else ''}" for one in parts), chained(parts, chosen.steps, folder / f"chain{number}"))
            for number, parts in enumerate(CHAINS)
        ]  # fmt: skip
        first, wrong = rows[0][1].checkpoint(chosen.steps), 0
        for what, live in rows:
            found = first_difference(first, live.checkpoint(chosen.steps))
            wrong += found is not None
            print(f"{what:45} {'equal to the last bit' if found is None else f'{found.name} {found.text}'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
