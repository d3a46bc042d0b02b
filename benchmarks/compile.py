"""Ten steps of a compiled model, from the command to its end, with an empty compile cache and with one that is filled; against
torchrun with a cache of its own."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import side_by_side
from side_by_side import Row, dtrain, scratch, seconds_of, table, torchrun

NEEDED = 1.0
WORKERS = 2


def cold_and_warm(command: Callable[[Path], list[str]], folder: Path) -> tuple[float, float]:
    """Seconds with an empty cache, and with what that left."""
    folder.mkdir()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    return seconds_of(command(folder), folder), seconds_of(command(folder), folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    side_by_side.LIMIT_SECONDS = 600.0
    with scratch() as name:
        ours, theirs = list[tuple[float, float]](), list[tuple[float, float]]()
        for number in range(options.rounds):
            ours.append(
                cold_and_warm(lambda folder: dtrain(folder, "compiled.py", WORKERS), Path(name) / f"ours-{number}")
            )
            theirs.append(cold_and_warm(lambda _: torchrun("compiled.py", WORKERS), Path(name) / f"theirs-{number}"))
    rows = [
        Row(what, statistics.median(pair[at] for pair in ours), statistics.median(pair[at] for pair in theirs), NEEDED)
        for at, what in enumerate(("with an empty compile cache", "with a filled one"))
    ]
    print(
        table(f"Ten steps of a compiled model, {WORKERS} workers (median of {options.rounds} pairs)", "torchrun", rows)
    )


if __name__ == "__main__":
    main()
