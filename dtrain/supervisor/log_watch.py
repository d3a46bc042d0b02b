"""Says once that the event log cannot be written, and once that it can be again."""

from __future__ import annotations

from dtrain.run import events
from dtrain.run.event_log import EventLog


class LogWatch:
    """Looks at one event log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._failing = False

    def look(self) -> None:
        """Add the event, which is kept until it can be written."""
        problem = self._log.problem
        if bool(problem) != self._failing:
            self._failing = bool(problem)
            error = f"cannot write {self._log.path}: {problem}"
            self._log.add(events.StorageFailed(error=error) if problem else events.StorageWorks())
