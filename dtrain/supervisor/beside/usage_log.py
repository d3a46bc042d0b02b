"""Logs how busy the nodes are, seldom enough that a long run's log stays small."""

from __future__ import annotations

from collections.abc import Mapping

from dtrain.record.event_log import EventLog
from dtrain.record.events import NodesUsed

SECONDS = 10.0
SLOWEST_SECONDS = 300.0
EVENTS = 300
"""Logged this often in the time since the attempt began."""
MOST_NODES = 64
"""Shown one by one."""


class UsageLog:
    """Collects what the agents measured, and logs it together."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._newest: dict[str, Mapping[str, float]] = {}
        self._began: float | None = None
        self._due = 0.0

    def heard(self, node: str, usage: Mapping[str, float], now: float) -> None:
        """Take a measurement of an agent; {}: nothing new."""
        if usage:
            self._newest[node] = usage
        if not self._newest:
            return
        if self._began is None:  # the others are about to be heard, too
            self._began, self._due = now, now + 1.0
        if now < self._due:
            return
        self._due = now + min(SLOWEST_SECONDS, max(SECONDS, (now - self._began) / EVENTS))
        self._log.add(NodesUsed(nodes=summarized(self._newest)))
        self._newest = {}


def summarized(nodes: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the numbers of each node, or the mean and the highest of all if there are many."""
    if len(nodes) <= MOST_NODES:
        return {node: dict(usage) for node, usage in nodes.items()}
    columns: dict[str, list[float]] = {}
    for usage in nodes.values():
        for name, value in usage.items():
            columns.setdefault(name, []).append(value)
    return {
        "mean": {name: round(sum(values) / len(values), 4) for name, values in columns.items()},
        "highest": {name: max(values) for name, values in columns.items()},
    }
