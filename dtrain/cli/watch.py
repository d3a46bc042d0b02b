"""Watching a run that is supervised elsewhere, from its submission to its real end, over every time it is queued again."""

from __future__ import annotations

import time

from dtrain.cli import queries
from dtrain.common.errors import ClusterError, Exit
from dtrain.run.event_log import Reader
from dtrain.run.events import Requeued, RunEnded, RunStarted
from dtrain.run.folder import RunDir

LOOK_SECONDS = 0.1
ASK_SECONDS = 3.0
"""Between two questions to the cluster, whose answers are slow and whose time is everybody's."""


class Follower:
    """Waits for the end of a run; Ctrl-C asks it to stop, a second one to stop at once."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._events = Reader(run.events)
        # What an earlier supervisor said is no end of this one.
        self._skipped = list(self._events.new())
        self._requeued = False
        self._interrupted = 0
        self._ask_at = time.monotonic() + ASK_SECONDS

    def wait(self) -> int:
        """The exit code of the run."""
        while True:
            try:
                code = self._look()
                if code is not None:
                    return code
                time.sleep(LOOK_SECONDS)
            except KeyboardInterrupt:
                self._interrupted += 1
                self._stop()

    def _look(self) -> int | None:
        code = self._told()
        if code is not None or time.monotonic() < self._ask_at:
            return code
        self._ask_at = time.monotonic() + ASK_SECONDS
        there = None if self._run.supervised() else queries.submission(self._run)
        if there is None or not there.over:
            return None
        # Its last words may still be under way on a slow file system.
        time.sleep(LOOK_SECONDS)
        code = self._told()
        if code is not None:
            return code
        return int(Exit.RESUMABLE if self._interrupted else Exit.GAVE_UP)

    def _told(self) -> int | None:
        """The exit code, where the run's diary has its real end by now."""
        for event in self._events.new():
            if isinstance(event, Requeued):
                self._requeued = True
            elif isinstance(event, RunStarted):
                self._requeued = False
            elif isinstance(event, RunEnded) and not self._requeued:
                return event.exit_code
        return None

    def _stop(self) -> None:
        """As `dtrain stop` does it, without its wait."""
        try:
            print(queries.stop(self._run, now=self._interrupted > 1, wait=False))
        except ClusterError as error:
            print(f"dtrain: {error}")
        self._ask_at = time.monotonic()
