"""What an attempt needs of storage before it begins, asked for beside the supervisor's loop: a checkpoint, and a number of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dtrain.checkpoint.store import CheckpointInfo, CheckpointStore, Quarantined
from dtrain.common.errors import StorageError
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.supervisor.beside.background import Lane

RETRY_SECONDS = 1.0


class Restore:
    """The search for the newest valid checkpoint, in the storage lane, and then for the attempt's number; storage that does not answer is
    asked again.

    Storage that just failed is often why the attempt before did."""

    def __init__(self, store: CheckpointStore, lane: Lane, log: EventLog, *, after: int, script: bool) -> None:
        self._store = store
        self._lane = lane
        self._log = log
        self._after = after
        """Number of the last attempt that the event log knows."""
        self._script = script
        self._error: Exception | None = None
        self._retry_at = 0.0
        self._again: Callable[[], object] = lambda: None
        self._asked = False
        self.done = False
        """The search has ended."""
        self.found: CheckpointInfo | None = None
        self.attempt = 0
        """The number of the next attempt, which no other one has; 0 until it is there."""
        self._ask(self._search, self._on_found)

    def check(self, *, late: bool) -> None:
        """Ask again after a failure; raises it if it is late, or if it is no failure of storage."""
        if self._error is None:
            return
        if late or not isinstance(self._error, StorageError):
            raise self._error
        if time.monotonic() >= self._retry_at:
            self._error = None
            self._again()

    def numbered(self) -> bool:
        """Whether the next attempt has a number; the first call asks for one, since an attempt that never begins needs none."""
        if not self._asked:
            self._asked = True
            self._ask(lambda: self._store.new_attempt(self._after), self._on_number)
        return bool(self.attempt)

    def _ask(self, task: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        def on_result(result: Any) -> None:
            if isinstance(result, Exception):
                self._error = result
                self._retry_at = time.monotonic() + RETRY_SECONDS
            else:
                answer(result)

        self._again = lambda: self._lane.run(task, on_result)
        self._again()

    def _search(self) -> list[CheckpointInfo | Quarantined]:
        self._store.clear_staging()
        return [] if self._script else list(self._store.latest_valid())

    def _on_found(self, result: list[CheckpointInfo | Quarantined]) -> None:
        for one in result:
            if isinstance(one, Quarantined):
                self._log.add(events.CheckpointQuarantined(folder=one.folder, problem=one.problem))
            else:
                self.found = one
        self.done = True

    def _on_number(self, number: int) -> None:
        self.attempt = number
