"""Starts a process for each tracker of a run and watches it from a thread: one that fails or hangs is started anew.

Nothing here holds up the supervisor's loop, and at the run's end the trackers get a short time for what is not logged yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path

from dtrain.common.errors import DtrainError
from dtrain.common.processes import kill_group
from dtrain.common.serde import from_dict
from dtrain.job.job import Job, PluginChoice
from dtrain.launch import registry
from dtrain.record.event_log import EventLog
from dtrain.record.events import Evaluation, Event, Metrics, NodesUsed, TrackerFailed, TrackerWorks
from dtrain.record.folder import RunDir
from dtrain.supervisor.beside.tracker_process import END_SECONDS, State

WORTH_DRAWING = (Metrics, Evaluation, NodesUsed)
"""The first of these in a run starts its trackers: a run that never trains is drawn nowhere."""
HANG_SECONDS = 120.0
"""A tracker that says nothing for so long is killed."""
KILL_SECONDS = 1.0
"""Longest wait for a killed process to be gone; one that a file server holds up is not waited for."""
CATCH_UP_SECONDS = 3600.0
"""For a person who waits for it."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
"""Longest pause between two tries; it is doubled after each."""


class Tracking:
    """The trackers of one run while it has a supervisor."""

    def __init__(self, run: RunDir, *, hang_seconds: float = HANG_SECONDS, end_seconds: float = END_SECONDS) -> None:
        self._run = run
        self._hang_seconds = hang_seconds
        self._end_seconds = end_seconds
        self._wanted = threading.Event()
        if run.events.exists() and run.events.stat().st_size:  # there may be something that an earlier supervisor left
            self._wanted.set()
        self._over = threading.Event()
        self._feeds: list[TrackerFeed] = []

    def hear(self, event: Event) -> None:
        """Take one event of the log."""
        if isinstance(event, WORTH_DRAWING):
            self._wanted.set()

    def start(self, job: Job, log: EventLog) -> None:
        """Begin to watch; processes are started when there is something to draw."""
        try:
            choices = registry.trackers_of(job)
        except DtrainError as error:  # a broken plugin must not keep the run from training
            log.add(TrackerFailed(tracker=registry.default("tracker"), error=error.message))
            return
        seconds = (self._hang_seconds, self._end_seconds)
        self._feeds = [TrackerFeed(self._run, job, choice, log, *seconds) for choice in choices]
        for feed in self._feeds:
            feed.start(self._wanted, self._over)

    def finish(self) -> dict[str, str]:
        """The event log is complete: wait a short time for the trackers, and say which of them lacks something and why
        (tracker → '' or the reason)."""
        self._over.set()
        if not self._wanted.is_set():
            return {}
        deadline = time.monotonic() + self._end_seconds
        for feed in self._feeds:
            feed.end()
        return {feed.name: feed.finish(deadline) for feed in self._feeds}


def catch_up(run: RunDir) -> dict[str, str]:
    """Give the trackers of a run that nobody supervises what they lack; tracker → '' or why it still lacks something."""
    with run.lock():
        log = EventLog(run.events)
        try:
            tracking = Tracking(run, end_seconds=CATCH_UP_SECONDS)
            tracking.start(run.job(), log)
            found = tracking.finish()
            for name in [name for name, problem in found.items() if not problem]:
                log.add(TrackerWorks(tracker=name))
            return found
        finally:
            log.close()


class TrackerFeed:
    """Feeds one tracker: its process, and the thread that watches it."""

    def __init__(
        self, run: RunDir, job: Job, choice: PluginChoice, log: EventLog, hang_seconds: float, end_seconds: float
    ) -> None:
        self.name = choice.name
        self._run = run
        self._choice = choice
        self._log = log
        self._hang_seconds = hang_seconds
        self._end_seconds = end_seconds
        folder = Path(job.folder)
        self._folder = folder if job.folder and folder.is_dir() else run.path
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()
        """Lock of `_process` and its stdin."""
        self._problem = ""
        self._pause = FIRST_PAUSE_SECONDS
        self._done = False

    def start(self, wanted: threading.Event, over: threading.Event) -> None:
        """Begin when there is something to draw; `over`: the run ends, this is the last chance."""
        self._over = over
        name = f"dtrain-tracker-{self.name}"
        self._thread = threading.Thread(target=self._work, args=(wanted,), name=name, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Tell the process that no more is coming."""
        with self._changing:
            if self._process and self._process.stdin:
                self._process.stdin.close()

    def finish(self, deadline: float) -> str:
        """Wait until everything is logged, until the deadline at most (monotonic seconds); why it is not, or ''."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changing:
            if self._process:
                kill_group(self._process.pid)
        self._thread.join(KILL_SECONDS)
        if self._done:
            return ""
        problem = self._problem or "it did not answer in time"
        self._log.add(TrackerFailed(tracker=self.name, error=problem, ended=True))
        return problem

    def _work(self, wanted: threading.Event) -> None:
        wanted.wait()
        while True:
            try:
                self._follow()
            except (
                OSError,
                ValueError,
                TypeError,
            ) as error:  # no more processes; it said something that cannot be read
                self._report(str(error))
            if self._done or self._over.is_set():
                return
            self._over.wait(self._pause)  # the end of the run is a last chance
            self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause)

    def _follow(self) -> None:
        """Run one process to its end, with a temporary folder of its own: libraries leave things there if they are
        killed."""
        with tempfile.TemporaryDirectory(prefix="dtrain-tracker-", ignore_cleanup_errors=True) as temporary:
            self._follow_in(temporary)

    def _follow_in(self, temporary: str) -> None:
        choice = json.dumps({"name": self.name, "options": self._choice.options})
        command = [sys.executable, "-P", "-m", "dtrain", "tracker", str(self._run.path), choice, str(self._end_seconds)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            cwd=self._folder, env=os.environ | {"TMPDIR": temporary},
        )  # fmt: skip
        with self._changing:
            self._process = process
            if self._over.is_set() and process.stdin:
                process.stdin.close()
        problem = self._listen(process)
        kill_group(process.pid)
        code = process.wait()
        with self._changing:
            self._process = None
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        self._done = code == 0
        if not self._done:
            self._report(problem or f"its process ended with code {code}: see {self._log_file()}")

    def _listen(self, process: subprocess.Popen[bytes]) -> str:
        """Read the process's output to its end; return why it ends, if it says so."""
        assert process.stdout
        said, rest = process.stdout.fileno(), b""
        problem = ""
        while True:
            if not wait([said], self._hang_seconds):
                return f"it has not answered for {self._hang_seconds:g} s"
            data = os.read(said, 1 << 16)
            if not data:
                return problem
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                state = from_dict(State, json.loads(line))
                problem = state.problem or problem
                if state.caught_up:
                    self._works()

    def _works(self) -> None:
        if self._problem:
            self._problem, self._pause = "", FIRST_PAUSE_SECONDS
            self._log.add(TrackerWorks(tracker=self.name))

    def _report(self, problem: str) -> None:
        """Log the first of several failures in a row."""
        if not self._problem and not self._over.is_set():
            self._log.add(TrackerFailed(tracker=self.name, error=problem))
        self._problem = problem

    def _log_file(self) -> Path:
        return self._run.logs / f"tracker-{self.name}.log"
