"""`notify`: notifications of a run, each sent by a process of its own, which never delays the run. Each is sent at most once: those of
events that an earlier supervisor logged are not sent again."""

from __future__ import annotations

import dataclasses
import json
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress

from dtrain.job.job import Job
from dtrain.record import event_log
from dtrain.record.events import Event
from dtrain.record.folder import RunDir
from dtrain.supervisor.beside import notify_process
from dtrain.supervisor.beside.notices import Notice, Notices

END_SECONDS = 5.0
"""Longest wait for the last notifications: a batch job ends all of its processes."""
LOG = "notify.log"


class Notifications:
    """Listens to the event log of one supervisor, from `start` on."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._notices = Notices()
        self._known = 0
        """Length of the event log at the start: what earlier supervisors logged."""
        self._heard: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._telling: list[subprocess.Popen[str]] = []

    def hear(self, event: Event) -> None:
        """Take one event of the log; it is dropped if the recipe has no `notify`."""
        if self._thread:
            self._heard.put(event)

    def start(self, job: Job) -> None:
        """Begin to send notifications, if the recipe has `notify`."""
        self._known = self._run.log_bytes()
        if job.notify.command or job.notify.webhook or job.notify.mail:
            self._thread = threading.Thread(target=self._tell_all, args=(job,), name="notify", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """The run is over: wait a moment for the notifications that are being sent."""
        if self._thread is None:
            return
        until = time.monotonic() + END_SECONDS
        self._heard.put(None)
        self._thread.join(END_SECONDS)
        for process in self._telling:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))

    def _tell_all(self, job: Job) -> None:
        for earlier in event_log.read(self._run.events, self._known):
            list(self._notices.add(earlier))
        while (event := self._heard.get()) is not None:
            for notice in self._notices.add(event):
                if notice.moment in job.notify.when:
                    self._tell(notice, job)

    def _tell(self, notice: Notice, job: Job) -> None:
        request = {"notice": notice.public(), "wanted": dataclasses.asdict(job.notify), "folder": job.folder}
        with open(self._run.logs / LOG, "a") as log:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", notify_process.__name__], stdin=subprocess.PIPE, stdout=log, stderr=log,
                    text=True, cwd="/", start_new_session=True,
                )  # fmt: skip
                assert process.stdin is not None
                with process.stdin:
                    json.dump(request, process.stdin)
            except OSError as error:
                print(f"notify, {notice.moment}: {error}", file=log)
                return
        self._telling = [one for one in self._telling if one.poll() is None] + [process]
