"""From typing a command to its end, against torchrun: scripts that do almost nothing, so that only the launcher counts."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from pathlib import Path

from side_by_side import Row, dtrain, in_turn, scratch, seconds_of, table, torchrun

CASES = (("nothing.py", 2, 0.15), ("all_reduce.py", 2, 0.5), ("all_reduce.py", 8, 0.25))


def second_start(folder: Path, rounds: int) -> Row:
    """From the command to the end of the first training step, with what the run before imported and kept warm."""
    done = folder / "done"
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # its sockets are there

    def seconds(command: list[str]) -> float:
        began = time.time()
        seconds_of(command, folder)
        return float(done.read_text()) - began

    ours = [*dtrain(folder, "first_step.py", 2, [str(done)]), "--warm", "5m"]
    theirs = torchrun("first_step.py", 2, arguments=[str(done)])
    try:
        row = Row("first step, 2 workers", *in_turn(rounds, lambda: seconds(ours), lambda: seconds(theirs)), 0.1)
    finally:
        seconds_of([ours[0], "warm", "--end"], folder)
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with scratch() as name:
        folder = Path(name)
        rows = []
        for script, workers, needed in CASES:
            commands = dtrain(folder, script, workers), torchrun(script, workers)
            ours, theirs = in_turn(rounds, *(functools.partial(seconds_of, command, folder) for command in commands))
            rows.append(Row(f"{script}, {workers} workers", ours, theirs, needed))
        print(table(f"Launching (median of {rounds})", "torchrun", rows))
        print("\n" + table("The second run after an edit (`--warm`)", "torchrun", [second_start(folder, rounds)]))
        help_ours, help_theirs = in_turn(
            rounds,
            lambda: seconds_of([str(Path(sys.executable).parent / "dtrain"), "--help"], folder),
            lambda: seconds_of([sys.executable, "-c", "import typer, rich.console"], folder),
        )
        print(
            "\n" + table("`dtrain --help`", "`import typer, rich.console`", [Row("help", help_ours, help_theirs, 1.5)])
        )


if __name__ == "__main__":
    main()
