"""Says that the event log cannot be written, in the log itself: what does not fit on a full disk is kept until it does."""

from __future__ import annotations

from dtrain.record import events
from dtrain.record.event_log import EventLog


class LogTrouble:
    """Reports trouble with writing one run's event log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._failing = False

    def look(self) -> None:
        """Say once that it cannot be written, and once that it can be again."""
        problem = self._log.problem
        if bool(problem) != self._failing:
            self._failing = bool(problem)
            error = f"cannot write {self._log.path}: {problem}"
            self._log.add(events.StorageFailed(error=error) if problem else events.StorageWorks(place="the event log"))
