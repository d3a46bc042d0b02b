"""From `kill -9` of a worker to the next training step, against torchrun with --max-restarts.

torchrun hangs in some of its restarts: its side has a time limit, and what did not recover within it is reported.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

from side_by_side import Row, dtrain, end, scratch, table, torchrun

STEPS = 100_000
WARM_STEPS = 25
LIMIT_SECONDS = 60.0


def steps_of(log: Path) -> list[tuple[int, int, float]]:
    """(process id, step, time) of every step that rank 1 has done."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [
        (int(pid), int(step), float(moment))
        for pid, step, moment in (line.split() for line in lines if line.count(" ") == 2)
    ]


def recoveries(command: list[str], folder: Path, kills: int) -> list[float | None]:
    """Kill rank 1 repeatedly in one run: seconds from each kill to its next step, None if none came in time."""
    log, found = folder / "log", list[float | None]()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        for _ in range(kills):
            before = len(steps_of(log))
            deadline = time.time() + LIMIT_SECONDS
            while len(steps_of(log)) < before + WARM_STEPS and time.time() < deadline:
                time.sleep(0.02)
            known = steps_of(log)
            if len(known) < before + WARM_STEPS:
                return [*found, None]
            pid = known[-1][0]
            killed = time.time()
            os.kill(pid, signal.SIGKILL)
            after: list[float] = []
            while not after and time.time() < killed + LIMIT_SECONDS:
                time.sleep(0.005)
                after = [moment for other, _, moment in steps_of(log) if other != pid and moment > killed]
            if not after:
                return [*found, None]
            found.append(after[0] - killed)
    finally:
        end(process)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="kills under dtrain")
    parser.add_argument("--peer-rounds", type=int, default=6, help="kills under torchrun, each in a run of its own")
    options = parser.parse_args()
    with scratch() as name:
        ours: list[float | None] = []
        theirs: list[float | None] = []
        for number in range(options.peer_rounds):
            for side in ("ours", "theirs"):
                folder = Path(name) / f"{side}-{number}"
                folder.mkdir()
                arguments = [str(folder), str(STEPS)]
                if side == "theirs":
                    theirs += recoveries(torchrun("steps.py", 2, "--max-restarts=5", arguments=arguments), folder, 1)
                else:
                    share = options.rounds // options.peer_rounds + (number < options.rounds % options.peer_rounds)
                    recipe = "recovery: {restarts: 1000, backoff_seconds: 0}\n"
                    ours += recoveries(dtrain(folder, "steps.py", 2, arguments, recipe), folder, share)
        good, peers = [value for value in ours if value is not None], [value for value in theirs if value is not None]
        print(
            f"dtrain recovered {len(good)} of {len(ours)}; torchrun {len(peers)} of {len(theirs)} within {LIMIT_SECONDS:g} s\n"
        )
        note = f"dtrain {len(good)} of {len(ours)}, torchrun {len(peers)} of {len(theirs)} recovered"
        if good and peers:
            row = Row("kill -9 of rank 1", statistics.median(good), statistics.median(peers), 0.05, note)
            print(table("From `kill -9` to the next training step (median)", "torchrun --max-restarts", [row]))


if __name__ == "__main__":
    main()
