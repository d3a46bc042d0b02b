"""Waiting for a run that is supervised elsewhere, from its submission to its real end, over every requeue."""

from __future__ import annotations

import time
from collections.abc import Callable

from dtrain.common.errors import Exit
from dtrain.control.state import goes_on, state_of, submission
from dtrain.record.event_log import Reader
from dtrain.record.events import Event, Requeued, RunEnded, RunStarted
from dtrain.record.folder import RunDir
from dtrain.record.status import RunState
from dtrain.storage import run_sync

POLL_SECONDS = 0.1
ASK_SECONDS = 3.0
"""Between two questions to the cluster, whose answers are slow and whose time is everyone's."""


def until_ended(run: RunDir, deadline: float | None = None) -> RunState:
    """Wait for the end of a run, or for a moment (monotonic seconds); the run's state then."""
    watcher = Watcher(run)
    while goes_on(run) and watcher.poll() is None and (deadline is None or time.monotonic() < deadline):
        time.sleep(POLL_SECONDS)
    return state_of(run)


class Watcher:
    """Waits for the end of a run and passes on the events that are logged meanwhile."""

    def __init__(self, run: RunDir, on_event: Callable[[Event], None] | None = None) -> None:
        self._run = run
        self._on_event = on_event
        self._events = Reader(run.events)
        # The end of an earlier supervisor is not the end of this one.
        for _ in self._events.new():
            pass
        self._requeued = False
        self._ask_at = time.monotonic() + ASK_SECONDS
        self.stopping = False
        """Whether the person asked the run to stop."""

    def wait(self, on_interrupt: Callable[[Watcher], None] | None = None) -> int:
        """Wait for the exit code of the run. Ctrl-C calls `on_interrupt` and, unless that raises, the wait goes on."""
        while True:
            try:
                while (code := self.poll()) is None:
                    time.sleep(POLL_SECONDS)
                return code
            except KeyboardInterrupt:
                if on_interrupt is None:
                    raise
                on_interrupt(self)

    def ask_soon(self) -> None:
        """Ask the cluster at the next poll."""
        self._ask_at = time.monotonic()

    def poll(self) -> int | None:
        """Does not wait. The exit code of the run, as soon as it has ended."""
        run_sync.refresh(self._run)
        code = self._logged_end()
        if code is not None or time.monotonic() < self._ask_at:
            return code
        self._ask_at = time.monotonic() + ASK_SECONDS
        if self._run.supervised():
            return None
        there = submission(self._run)
        if there is not None and not there.over:
            return None
        # The last events may still be under way on a slow file system.
        time.sleep(POLL_SECONDS)
        code = self._logged_end()
        if code is not None:
            return code
        return int(Exit.RESUMABLE if self.stopping else Exit.GAVE_UP)

    def _logged_end(self) -> int | None:
        """The exit code, if the event log has the run's real end by now."""
        for event in self._events.new():
            if self._on_event:
                self._on_event(event)
            if isinstance(event, Requeued):
                self._requeued = True
            elif isinstance(event, RunStarted):
                self._requeued = False
            elif isinstance(event, RunEnded) and not self._requeued:
                return event.exit_code
        return None
