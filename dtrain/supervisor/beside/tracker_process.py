"""The process of one tracker: reads the event log and gives the tracker the entries that it lacks, until the run ends.

Whatever goes wrong ends this process: the supervisor says so, and starts it anew (see `dtrain.supervisor.beside.tracking`). One JSON line on
stdout says how far it is; the end of stdin says that the supervisor has left.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dtrain.api.tracker import TrackedRun
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import send_output_to, set_name
from dtrain.common.secrets import PRIVATE_KEYS
from dtrain.common.serde import JsonObject, from_dict, to_dict
from dtrain.job.job import Job, PluginChoice
from dtrain.launch import registry
from dtrain.record.event_log import Reader
from dtrain.record.folder import RunDir
from dtrain.record.tracker_entries import Curves, Entry

POLL_SECONDS = 1.0
MOST_ENTRIES = 500
"""Given to a tracker at once."""
END_SECONDS = 10.0
"""For what is not logged yet when the supervisor leaves."""
NICENESS = 10
"""The training goes first."""
MOST_LETTERS = 200
"""Longest problem, in letters; the whole of it is in the tracker's log."""
PRIVATE = {key.partition(".")[0] for key in PRIVATE_KEYS} | {"track"}
"""Sections of a job that may hold secrets, or say nothing about the training."""


@dataclass(frozen=True)
class State:
    """A line on stdout: how far the tracker is."""

    logged: int = 0
    caught_up: bool = False
    problem: str = ""
    """Why the process ends."""


class EntrySource:
    """The entries of a run from a number on, as they come."""

    def __init__(self, events: Path, first: int) -> None:
        self.curves = Curves()
        self._entries = self._read(Reader(events))
        self._first = first

    def next(self, most: int) -> list[Entry]:
        """Entries that are new since the last call, `most` at most."""
        found: list[Entry] = []
        for entry in self._entries:
            if entry is None:
                break
            if entry.number >= self._first:
                found.append(entry)
                if len(found) == most:
                    break
        return found

    def _read(self, reader: Reader) -> Iterator[Entry | None]:
        """None after the last event that is in the log yet."""
        while True:
            for event in reader.new():
                yield from self.curves.add(event)
            yield None


class Count:
    """How many entries a tracker that cannot tell has logged, in its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "logged"

    def read(self) -> int:
        """Read the number of entries logged; 0: nothing is known."""
        try:
            return int(self._path.read_text())
        except (OSError, ValueError):
            return 0

    def write(self, logged: int) -> None:
        """Replace it as a whole; a power loss may bring back an older one."""
        aside = self._path.with_name(".logged")
        aside.write_text(str(logged))
        os.replace(aside, self._path)


def tracker_folder(run: RunDir, name: str) -> Path:
    """The folder of a tracker in a run folder."""
    return run.path / "trackers" / name


def tracked(run: RunDir, job: Job, folder: Path) -> TrackedRun:
    """The run as a tracker is told of it, without what may be secret."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in to_dict(job).items() if name not in PRIVATE}
    return TrackedRun(run.id, job.name, folder, config)


def log_entries(run: RunDir, job: Job, choice: PluginChoice, folder: Path, over: threading.Event) -> Iterator[State]:
    """Open the tracker, log what it lacks and what comes, close it; says how far it is after each look at the event log."""
    tracker = registry.tracker(choice.name, choice.options)
    held, count = tracker.open(tracked(run, job, folder)), Count(folder)
    logged = count.read() if held is None else held
    source = EntrySource(run.events, logged)
    while True:
        last = over.is_set()
        entries = source.next(MOST_ENTRIES)
        if entries:
            tracker.log(entries)
            logged = entries[-1].number + 1
            count.write(logged)
        caught_up = len(entries) < MOST_ENTRIES
        yield State(logged, caught_up)
        if caught_up and last:
            tracker.close(source.curves.ending)
            return
        if caught_up:
            over.wait(POLL_SECONDS)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Until the process of an earlier supervisor of the same run has ended; a file system without locks does without."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:
                break
            else:
                break
        yield


def main(path: str, choice: str, end_seconds: str) -> int:
    """`python -P -m dtrain tracker RUN CHOICE SECONDS`, started by the supervisor: the tracker with its options as JSON, and
    how long it may take when the supervisor has left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    set_name("dtrain-tracker")
    with suppress(OSError):
        os.nice(NICENESS)
    said, over = os.dup(1), threading.Event()
    watching = (os.dup(0), over, float(end_seconds))
    threading.Thread(target=_watch_supervisor, args=watching, daemon=True).start()
    run, chosen = RunDir(Path(path)), from_dict(PluginChoice, json.loads(choice))
    folder = tracker_folder(run, chosen.name)
    with alone(folder):
        send_output_to(run.logs / f"tracker-{chosen.name}.log")
        try:
            for state in log_entries(run, run.job(), chosen, folder, over):
                _say(said, to_dict(state))
        except BaseException as error:  # noqa: BLE001  a tracker may raise anything
            traceback.print_exc()
            text = textwrap.shorten(f"{type(error).__name__}: {error}", MOST_LETTERS, placeholder=" …")
            _say(said, to_dict(State(problem=text)))
            return _leave(1)
        return _leave(0)


def _leave(code: int) -> int:
    """Leave at once: what a tracker's library would still wait for at the end of the interpreter has had its time in `close`."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _watch_supervisor(stdin: int, over: threading.Event, end_seconds: float) -> None:
    """The end of stdin: what is left must be logged soon."""
    with suppress(OSError):
        while os.read(stdin, 1024):
            pass
    over.set()
    time.sleep(end_seconds)
    os._exit(1)


def _say(said: int, state: JsonObject) -> None:
    with suppress(OSError):
        os.write(said, json.dumps(state).encode() + b"\n")
