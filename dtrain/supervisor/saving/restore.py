"""The search for the checkpoint that an attempt begins from, beside the supervisor's loop."""

from __future__ import annotations

import time

from dtrain.checkpoint.store import CheckpointInfo, CheckpointStore, Quarantined
from dtrain.common.errors import StorageError
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.supervisor.beside.background import Lane

RETRY_SECONDS = 1.0


class Restore:
    """The search for the newest valid checkpoint, in the storage lane; storage that does not answer is asked again.

    Storage that just failed is often why the attempt before did."""

    def __init__(self, store: CheckpointStore, lane: Lane, log: EventLog, *, script: bool) -> None:
        self._store = store
        self._lane = lane
        self._log = log
        self._error: Exception | None = None
        self._retry_at = 0.0
        self.done = False
        self.found: CheckpointInfo | None = None
        self._search = self._clear if script else self._find
        lane.run(self._search, self._on_found)

    def check(self, *, late: bool) -> None:
        """Ask again after a failure; raises it if it is late, or if it is no failure of storage."""
        if self._error is None:
            return
        if late or not isinstance(self._error, StorageError):
            raise self._error
        if time.monotonic() >= self._retry_at:
            self._error = None
            self._lane.run(self._search, self._on_found)

    def _clear(self) -> list[CheckpointInfo | Quarantined]:
        self._store.clear_staging()
        return []

    def _find(self) -> list[CheckpointInfo | Quarantined]:
        self._store.clear_staging()
        return list(self._store.latest_valid())

    def _on_found(self, result: list[CheckpointInfo | Quarantined] | Exception) -> None:
        if isinstance(result, Exception):
            self._error = result
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return
        for one in result:
            if isinstance(one, Quarantined):
                self._log.add(events.CheckpointQuarantined(folder=one.folder, problem=one.problem))
            else:
                self.found = one
        self.done = True
