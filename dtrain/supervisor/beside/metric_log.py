"""Logs the metrics of an attempt: all of a usual run, and of one with millions of reports no more than its time is worth."""

from __future__ import annotations

from dtrain.record.event_log import EventLog
from dtrain.record.events import Event, Metrics

EVENTS = 10_000
"""Metrics of an attempt that are all logged. Later ones are logged this often in the time since the first."""


class MetricLog:
    """The events that workers report in one attempt; of the metrics among them, some are left out in the end."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._count = 0
        self._began = 0.0
        self._due_at = 0.0
        self._newest: Metrics | None = None
        """The newest metrics, if they are not logged."""

    def add(self, event: Event, now: float) -> None:
        """Log an event, or keep it until the next one or the end."""
        if isinstance(event, Metrics):
            self._began = self._began if self._count else now
            self._count += 1
            if self._count > EVENTS and now < self._due_at:
                self._newest = event
                return
            self._due_at = now + (now - self._began) / EVENTS
            self._newest = None
        self._log.add(event)

    def end(self) -> None:
        """Log what was reported last."""
        if self._newest:
            self._log.add(self._newest)
            self._newest = None
