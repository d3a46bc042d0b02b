"""The limit between telling a node to start its workers and hearing that they are started."""

from __future__ import annotations

from collections.abc import Iterable

from dtrain.job.failure_kinds import Failure, FailureKind


class StartWatch:
    """A node whose zygote does not come to the end of its imports forks no workers, and nothing else would say so."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._silent: set[str] = set()
        self._deadline = 0.0

    def begin(self, nodes: Iterable[str], now: float) -> None:
        """Start the limit: these nodes were asked to start their workers."""
        self._silent = set(nodes)
        self._deadline = now + self._limit_seconds

    def started(self, node: str) -> None:
        """Mark a node's workers as started."""
        self._silent.discard(node)

    def overdue(self, now: float) -> Failure | None:
        """The failure of a node that takes too long, once."""
        if not self._silent or now < self._deadline:
            return None
        node = min(self._silent)
        self._silent.clear()
        limit = f"{self._limit_seconds:g} s (recovery.provision_seconds)"
        message = f"node {node} started no workers within {limit}; what it was importing is in logs/agent-{node}.log"
        return Failure(FailureKind.HANG, message, node=node)
