"""Logs how far the ranks of an attempt are, often at first and less often in a long run, so that its log stays small."""

from __future__ import annotations

from dtrain.record import events
from dtrain.record.event_log import EventLog

EVERY_SECONDS = 1.0
SLOWEST_SECONDS = 30.0
EVENTS = 600
"""Progress is logged this often in the time since the attempt began."""
MOST_RANKS_SHOWN = 64


class ProgressLog:
    """The progress events of one attempt."""

    def __init__(self, attempt: int, log: EventLog) -> None:
        self._attempt = attempt
        self._log = log
        self._began: float | None = None
        self._due_at = 0.0

    def heard(self, steps: dict[int, int], now: float) -> None:
        """Steps done by each rank at this time."""
        self._began = now if self._began is None else self._began
        if now < self._due_at:
            return
        self._due_at = now + min(SLOWEST_SECONDS, max(EVERY_SECONDS, (now - self._began) / EVENTS))
        if steps:
            shown = {str(rank): step for rank, step in steps.items()} if len(steps) <= MOST_RANKS_SHOWN else {}
            self._log.add(events.Progress(attempt=self._attempt, step=min(steps.values()), steps=shown))
