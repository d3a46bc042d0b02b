"""`notify`: has people told of a run by processes of their own, which never hold it up. Each moment is told once: what earlier
supervisors logged counts as told."""

from __future__ import annotations

import dataclasses
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from dtrain.run import event_log
from dtrain.run.events import Event
from dtrain.run.folder import RunDir
from dtrain.run.notices import Notice, Notices
from dtrain.spec.job import Job
from dtrain.supervisor import notify_process

END_SECONDS = 5.0
"""Longest wait for those who are being told when the run is over: a batch job ends all of its processes."""
LOG = "notify.log"


class Notifications:
    """Hears the events of one supervisor, in the threads that log them."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._notices = Notices()
        self._began = time.time()
        self._heard: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._telling: list[subprocess.Popen[str]] = []

    def listening(self, on_event: Callable[[Event], None] | None) -> Callable[[Event], None]:
        """What hears every event: this, and somebody else."""

        def hear(event: Event) -> None:
            self._heard.put(event)
            if on_event:
                on_event(event)

        return hear

    def start(self, job: Job) -> None:
        """Begin to tell, if the recipe wants it."""
        if job.notify.command or job.notify.webhook or job.notify.mail:
            self._thread = threading.Thread(target=self._tell_all, args=(job,), name="notify", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """The run is over: give those who are being told a moment."""
        if self._thread is None:
            return
        until = time.monotonic() + END_SECONDS
        self._heard.put(None)
        self._thread.join(END_SECONDS)
        for process in self._telling:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))

    def _tell_all(self, job: Job) -> None:
        for earlier in event_log.read(self._run.events):
            if earlier.time < self._began:
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
