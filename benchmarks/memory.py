"""In-memory checkpoints: what a step costs with them, and from `kill -9` of a worker to the next *new* step, one that was not done before,
against checkpoints on disk alone and against torchrun with --max-restarts, whose script saves as often.

torchrun hangs in some of its restarts: its side has a time limit, and what did not recover within it is reported.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recovery import LIMIT_SECONDS, steps_of
from side_by_side import BIN, PROGRAMS, Row, end, in_turn, scratch, seconds_of, silent, table, torchrun

from dtrain.record import event_log
from dtrain.record.events import AttemptStarted, CheckpointSaved, MemoryInterval, WorkersStarted
from dtrain.record.folder import RunDir, all_runs
from dtrain.record.sample_ledger import LedgerFile, last_step
from dtrain.report.audit import audit

STEPS = 100_000
NEEDED_STEP = 1.01
NEEDED_RECOVERY = 0.02
AFTER_SAVE = 0.5
"""Share of the first interval between two checkpoints on disk that is over when a worker is killed: the mean of all moments."""
MORE_STEPS = 60
"""After the kill, so that the end can be checked."""


@dataclass(frozen=True)
class Settings:
    """Of the model and its checkpoints on disk."""

    width: int
    pause: float
    every: int


@dataclass(frozen=True)
class Recovery:
    """After one kill."""

    seconds: float
    """To the next new step."""
    lost: int
    """Steps that were done and are done again."""
    interval: int
    """Steps between two in-memory checkpoints then; 0: there are none."""


def recipe(folder: Path, settings: Settings, steps: int, memory: str) -> Path:
    """A recipe of the task."""
    path = folder / f"memory-{memory}.yaml"
    path.write_text(
        f"task: {PROGRAMS}/remembered.py:Remembered\nparams: {{width: {settings.width}, pause: {settings.pause}}}\n"
        f"strategy: ddp\nresources: {{workers: 2, cpus_per_worker: 1}}\ntrack: []\n"
        f"train: {{steps: {steps}, global_batch: 32, log_every: 50}}\n"
        f"checkpoint: {{every_steps: {settings.every}, memory_every_steps: {memory}}}\n"
    )
    return path


def step_seconds(folder: Path, settings: Settings, steps: int, memory: str) -> float:
    """Mean of a whole run's steps but the first tenth, timed by its own ledger: a median would not see the copies."""
    runs = folder / "runs"
    command = [str(BIN / "dtrain"), "run", str(recipe(folder, settings, steps, memory)), "--runs", str(runs)]
    seconds_of(command, folder, LIMIT_SECONDS + 3 * steps * settings.pause)
    ledger = LedgerFile(all_runs(runs)[-1].ledger(1, 0))
    moments = [entry.time for entry in ledger.read(0, len(ledger))]
    seconds = [b - a for a, b in itertools.pairwise(moments[steps // 10 :])]
    return statistics.mean(seconds)


def waited(condition: Callable[[], int | None]) -> int | None:
    """The condition's value as soon as it has one; None after the time limit."""
    deadline = time.time() + 2 * LIMIT_SECONDS
    while time.time() < deadline:
        if value := condition():
            return value
        time.sleep(0.002)
    return None


def ours(folder: Path, settings: Settings, memory: str) -> Recovery | None:
    """One kill of rank 1 under dtrain; checks that the samples are right in the end."""
    folder.mkdir()
    runs, kill_at = folder / "runs", int(settings.every * AFTER_SAVE)
    steps = kill_at + MORE_STEPS
    command = [str(BIN / "dtrain"), "run", str(recipe(folder, settings, steps, memory)), "--runs", str(runs)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        waited(lambda: len(all_runs(runs)))
        run: RunDir = all_runs(runs)[-1]
        if waited(lambda: (last_step(run.ledger(1, 1)) or 0) >= kill_at) is None:
            return None
        started = [event for event in event_log.read(run.events) if isinstance(event, WorkersStarted)]
        done, killed = last_step(run.ledger(1, 1)) or 0, time.time()
        os.kill(started[0].pids["1"], signal.SIGKILL)
        if waited(lambda: (last_step(run.ledger(2, 1)) or 0) > done) is None:
            return None
        seconds = time.time() - killed
        assert process.wait(LIMIT_SECONDS + settings.every * settings.pause) == 0
    finally:
        end(process)
    history = event_log.read(run.events)
    checked = audit(run)
    assert checked
    assert checked.clean
    assert [event.step for event in history if isinstance(event, CheckpointSaved)][-1] == steps
    begun = [event.step for event in history if isinstance(event, AttemptStarted)][1]
    intervals = [event.every_steps for event in history if isinstance(event, MemoryInterval) and event.attempt == 1]
    return Recovery(seconds, (last_step(run.ledger(1, 1)) or done) - begun, intervals[-1] if intervals else 0)


def theirs(folder: Path, settings: Settings) -> Recovery | None:
    """One kill of rank 1 under torchrun."""
    folder.mkdir()
    log, kill_at = folder / "log", int(settings.every * AFTER_SAVE)
    arguments = [str(folder), str(STEPS), str(settings.every), str(settings.width), str(settings.pause)]
    command = torchrun("remembered.py", 2, "--max-restarts=5", arguments=arguments)
    process = silent(command, folder)
    try:
        if waited(lambda: bool(steps_of(log)) and steps_of(log)[-1][1] >= kill_at) is None:
            return None
        pid, done, _ = steps_of(log)[-1]
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        if waited(lambda: steps_of(log)[-1][1] > done and steps_of(log)[-1][0] != pid) is None:
            return None
        first = next(step for other, step, _ in steps_of(log) if other != pid)
        return Recovery(time.time() - killed, done - first + 1, 0)
    finally:
        end(process)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="kills of each side")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs without a kill")
    parser.add_argument("--steps", type=int, default=600, help="of a run without a kill")
    parser.add_argument("--width", type=int, default=256, help="of the model: 256 has 0.08 M parameters, 2000 has 4 M")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds that each step waits")
    parser.add_argument("--every", type=int, default=600, help="steps between two checkpoints on disk")
    options = parser.parse_args()
    settings = Settings(options.width, options.pause, options.every)
    with scratch() as name:
        side = functools.partial(step_seconds, Path(name), settings, options.steps)
        with_memory, without = in_turn(options.pairs, functools.partial(side, "auto"), functools.partial(side, "0"))
        row = Row("a step", with_memory * 1000, without * 1000, NEEDED_STEP)
        print(
            table(f"In-memory checkpoints at their own interval ({options.pairs} pairs)", "without", [row], "ms"),
            "\n",
            flush=True,
        )
        found: dict[str, list[Recovery | None]] = {"memory": [], "disk": [], "torchrun": []}
        for number in range(options.rounds):
            for side_name, memory in (("memory", "auto"), ("disk", "0")):
                found[side_name].append(ours(Path(name) / f"{side_name}-{number}", settings, memory))
            found["torchrun"].append(theirs(Path(name) / f"torchrun-{number}", settings))
        for side_name, recoveries in found.items():
            good = [one for one in recoveries if one]
            lost, intervals = [one.lost for one in good], [one.interval for one in good]
            print(f"{side_name}: {len(good)} of {len(recoveries)} recovered; steps lost {lost}; interval {intervals}")
        medians = {
            side_name: statistics.median(one.seconds for one in recoveries if one)
            for side_name, recoveries in found.items()
            if any(recoveries)
        }
        rows = [
            Row(f"against {peer}", medians["memory"], medians[peer], NEEDED_RECOVERY)
            for peer in ("disk", "torchrun")
            if peer in medians
        ]
        print(table("From `kill -9` to the next new step (median)", "peer", rows))


if __name__ == "__main__":
    main()
