"""What all trackers together cost a step: in one run they are stopped and let go on in turn, window by window.

While they are stopped, what they have to log piles up, so that a window with them pays for the one before, too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from side_by_side import BIN, PROGRAMS, end, scratch

from dtrain.record.folder import RunDir, all_runs
from dtrain.record.sample_ledger import LedgerFile

TRACKERS = 5
START_SECONDS = 20.0
"""Until all of them have imported their libraries and caught up."""
HEAD = "| step without (ms) | with (ms) | ratio | CPU s a minute of all trackers | of this machine | once, at the start (CPU s) |"


@dataclass(frozen=True)
class Window:
    """A time in which the trackers worked, or did not."""

    working: bool
    begin: float
    end: float
    cpu: float
    """Seconds that the trackers used in it."""


@contextmanager
def training(folder: Path) -> Iterator[RunDir]:
    """A run of two workers with every tracker, under way."""
    recipe = folder / "tracked.yaml"
    recipe.write_text(
        f"task: {PROGRAMS}/million.py:Million\nstrategy: ddp\nresources: {{workers: 2, cpus_per_worker: 1}}\n"
        f"train: {{steps: 10000000, global_batch: 256}}\ncheckpoint: {{every_steps: 1000000}}\n"
        f"track: [tensorboard, csv, wandb, {{name: mlflow, uri: {folder}/mlruns}}, {{name: prometheus, folder: {folder}/textfiles}}]\n"
    )
    command = [str(BIN / "dtrain"), "run", str(recipe), "--runs", str(folder / "runs")]
    environment = os.environ | {"WANDB_MODE": "offline"}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output, text=True, start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (found := all_runs(folder / "runs")) or len(sessions(found[0])) < TRACKERS:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "output").read_text()
            time.sleep(0.1)
        time.sleep(START_SECONDS)
        yield found[0]
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        end(process)


def sessions(run: RunDir) -> set[int]:
    """The processes that the supervisor started for the trackers of a run; each leads a session."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"tracker" in words and str(run.path).encode() in words:
                found.add(int(path.parent.name))
    return found


def members(leaders: set[int]) -> dict[int, float]:
    """Processes of these sessions → CPU seconds they have used."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) in leaders:
                found[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def windows(run: RunDir, pairs: int, seconds: float) -> list[Window]:
    """Stop the trackers, let them go on, and so on."""
    leaders, found = sessions(run), []
    for number in range(2 * pairs):
        working = number % 2 == 1
        before = members(leaders)
        for pid in before:
            os.kill(pid, signal.SIGCONT if working else signal.SIGSTOP)
        begin = time.time()
        time.sleep(seconds)
        used = sum(members(leaders).values()) - sum(before.values())
        found.append(Window(working, begin, time.time(), used))
    for pid in members(leaders):
        os.kill(pid, signal.SIGCONT)
    return found


def step_seconds(moments: list[float], window: Window) -> float:
    """The mean time of a step in a window."""
    inside = [moment for moment in moments if window.begin <= moment <= window.end]
    return (inside[-1] - inside[0]) / (len(inside) - 1)


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window")
    options = parser.parse_args()
    with scratch() as name, training(Path(name)) as run:
        started = sum(members(sessions(run)).values())
        measured = windows(run, options.pairs, options.seconds)
        ledger = LedgerFile(run.ledger(1, 0))
        moments = [entry.time for entry in ledger.read(0, len(ledger))]
    steps = [step_seconds(moments, window) for window in measured]
    # Each window with trackers against the mean of its neighbours without, so that a drift of the machine cancels out.
    sides = [(b, (a + c) / 2) for a, b, c in zip(steps[0::2], steps[1::2], steps[2::2], strict=False)]
    ours, theirs = (statistics.median(side) for side in zip(*sides, strict=True))
    ratio = statistics.median(with_them / without for with_them, without in sides)
    wall = sum(window.end - window.begin for window in measured)
    minute = sum(window.cpu for window in measured) / wall * 60
    share = minute / 60 / (os.cpu_count() or 1)
    print(f"{HEAD}\n|---|---|---|---|---|---|")
    print(f"| {theirs * 1000:.3f} | {ours * 1000:.3f} | **{ratio:.4f}** | {minute:.2f} | {share:.2%} | {started:.1f} |")
    worst = max(itertools.starmap(lambda a, b: a / b, sides))
    print(f"\n{len(sides)} pairs of {options.seconds:g} s, the worst {worst:.3f}")


if __name__ == "__main__":
    main()
