"""A training with a fault at random every so often, minutes by default, hours by option: which share of the time it got on, whether its
weights and samples are those of the undisturbed run, and the same job under torchrun with --max-restarts beside it, in turn.

The effective share is the time that as many steps take undisturbed, by the time that they took. Faults come from outside: `kill -9` or a
SIGSEGV for a worker of a random rank and, under dtrain alone, `kill -9` of the process that forks the workers. torchrun hangs in some of its
restarts; after a minute without a step its job is started again, as a person would.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from memory import Settings, recipe
from recovery import steps_of
from side_by_side import BIN, Row, end, scratch, seconds_of, silent, table, torchrun

from dtrain.record import event_log
from dtrain.record.events import CheckpointSaved, FailureOccurred, WorkersStarted
from dtrain.record.folder import RunDir, all_runs
from dtrain.record.sample_ledger import LedgerFile
from dtrain.report.audit import audit

NEEDED = 0.97
FAULTS = ("kill", "kill", "segv", "zygote")
GRACE = 10.0
"""Times the planned length: a run that takes longer has failed."""
HUNG_SECONDS = 60.0


def undisturbed(folder: Path, settings: Settings, steps: int) -> tuple[RunDir, float]:
    """A run without a fault, and its mean step in seconds."""
    command = [str(BIN / "dtrain"), "run", str(recipe(folder, settings, steps, "auto")), "--runs", str(folder / "runs")]
    seconds_of(command, folder, GRACE * steps * settings.pause)
    run = all_runs(folder / "runs")[-1]
    ledger = LedgerFile(run.ledger(1, 0))
    first, last = ledger.at(0), ledger.at(-1)
    assert first
    assert last
    return run, (last.time - first.time) / (last.step - first.step)


def moments(every: float, rng: random.Random) -> Iterator[float]:
    """When faults come: exponential gaps with a mean of `every` seconds."""
    now = time.time()
    while True:
        now += rng.expovariate(1 / every)
        yield now


def parent(pid: int) -> int:
    """Of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def disturb(run: RunDir, rng: random.Random) -> str:
    """One fault; '' if no worker is there just now."""
    started = [event for event in event_log.read(run.events) if isinstance(event, WorkersStarted)]
    fault = rng.choice(FAULTS)
    try:
        pid = started[-1].pids[str(rng.randrange(2))]
        os.kill(parent(pid) if fault == "zygote" else pid, signal.SIGSEGV if fault == "segv" else signal.SIGKILL)
    except (OSError, IndexError):
        return ""
    return fault


def ours(folder: Path, settings: Settings, steps: int, every: float, seed: int) -> tuple[RunDir, float, list[str]]:
    """The run under dtrain: its folder, seconds, and the faults that struck."""
    folder.mkdir()
    rng, faults = random.Random(seed), list[str]()
    path = recipe(folder, settings, steps, "auto")
    path.write_text(path.read_text() + "recovery: {restarts: 1000, backoff_seconds: 0}\n")
    began = time.time()
    command = [str(BIN / "dtrain"), "run", str(path), "--runs", str(folder / "runs")]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for moment in moments(every, rng):
            try:
                code = process.wait(max(0.0, moment - time.time()))
                assert code == 0, f"exit code {code}"
                break
            except subprocess.TimeoutExpired:
                known = all_runs(folder / "runs")
                faults += [fault] if known and (fault := disturb(known[-1], rng)) else []
    finally:
        end(process)
    return all_runs(folder / "runs")[-1], time.time() - began, faults


def theirs(folder: Path, settings: Settings, steps: int, every: float, seed: int) -> tuple[float, int, int]:
    """The job under torchrun: seconds, faults, and how often it had to be started again by hand."""
    folder.mkdir()
    rng, log, faults, again = random.Random(seed), folder / "log", 0, 0
    arguments = [str(folder), str(steps), str(settings.every), str(settings.width), str(settings.pause)]
    command = torchrun("remembered.py", 2, "--max-restarts=1000", arguments=arguments)
    began = time.time()
    process = silent(command, folder)
    due = moments(every, rng)
    strikes = next(due)
    try:
        while process.poll() != 0 and time.time() < began + GRACE * steps * settings.pause:
            time.sleep(0.05)
            known = steps_of(log)
            quiet = time.time() - (known[-1][2] if known else began)
            if process.poll() or quiet > HUNG_SECONDS:
                end(process)
                again += 1
                process = silent(command, folder)
                time.sleep(HUNG_SECONDS / 4)
            if time.time() >= strikes:
                strikes = next(due)
                if known and Path(f"/proc/{known[-1][0]}").exists():
                    os.kill(known[-1][0], signal.SIGKILL)
                    faults += 1
    finally:
        end(process)
    return time.time() - began, faults, again


def weights(run: RunDir) -> str:
    """Digest of the weights at the end."""
    return [event.weights for event in event_log.read(run.events) if isinstance(event, CheckpointSaved)][-1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="that the steps take undisturbed")
    parser.add_argument("--fault-every", type=float, default=60.0, help="mean seconds between two faults")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds that each step waits")
    parser.add_argument("--every", type=int, default=100, help="steps between two checkpoints on disk")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="without torchrun")
    options = parser.parse_args()
    settings, steps = Settings(256, options.pause, options.every), int(options.minutes * 60 / options.pause)
    with scratch() as name:
        reference, step = undisturbed(Path(name), settings, steps)
        run, seconds, faults = ours(Path(name) / "ours", settings, steps, options.fault_every, options.seed)
        checked = audit(run)
        assert checked
        assert checked.clean
        failures = sum(isinstance(event, FailureOccurred) for event in event_log.read(run.events))
        assert weights(run) == weights(reference), f"other weights than undisturbed: {run.path}"
        print(
            f"dtrain: {len(faults)} faults ({', '.join(faults)}), {failures} failures seen, weights and samples as undisturbed",
            flush=True,
        )
        share = steps * step / seconds
        if options.alone:
            print(f"effective share {share:.3f} (needed {NEEDED})")
            return
        peer, struck, again = theirs(Path(name) / "theirs", settings, steps, options.fault_every, options.seed)
        print(f"torchrun: {struck} faults, started again by hand {again} times\n")
        row = Row(f"{options.minutes:g} minutes of steps", share, steps * step / peer, NEEDED)
        print(table(f"Effective share with a fault every {options.fault_every:g} s", "torchrun", [row], unit="share"))


if __name__ == "__main__":
    main()
