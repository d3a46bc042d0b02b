"""Watches the ranks of one attempt: how far they are, whether they stand still, which of them the others wait for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set

from dtrain.api.protocol import Heartbeat
from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.job.job import Recovery
from dtrain.record.event_log import EventLog
from dtrain.supervisor.beside.metric_log import MetricLog
from dtrain.supervisor.beside.progress_log import ProgressLog
from dtrain.supervisor.beside.usage_log import UsageLog
from dtrain.supervisor.failures.hang_detector import Hang, HangDetector
from dtrain.supervisor.failures.hang_stacks import HangStacks
from dtrain.supervisor.failures.stragglers import Stragglers

LOOK_SECONDS = 0.5
"""Pause between two looks for hanging ranks: each goes through all of them."""
LEAST_STEPS_AHEAD = 3
HEARD_SECONDS = 2.0
"""Longest time for a command to reach every worker."""


class Watch:
    """What the agents' heartbeats say of the ranks of one attempt."""

    def __init__(
        self, attempt: int, settings: Recovery, owner: Mapping[int, str], log: EventLog, *, own_loop: bool = True
    ) -> None:
        self._hangs = HangDetector(settings.hang_seconds, own_loop=own_loop)
        self.start = StartWatch(settings.provision_seconds)
        self.stragglers = Stragglers(attempt, log, owner)
        self.stacks = HangStacks()
        self.rate = 0.0
        """Steps a second."""
        self._progress = ProgressLog(attempt, log)
        self._usage = UsageLog(log)
        self.metrics = MetricLog(log)
        self._looks_at = 0.0

    def beat(self, node: str, event: Heartbeat, now: float) -> None:
        """Take a heartbeat of a node's agent."""
        self._hangs.update({int(rank): sign.aged(event.age_seconds) for rank, sign in event.signs.items()}, now)
        self._progress.heard(self._hangs.steps(), now)
        self._usage.heard(node, event.usage, now)

    def phase(self, rank: int, *, stepping: bool) -> None:
        """A rank does steps from now on, or something that takes its own time."""
        self._hangs.phase(rank, stepping=stepping)

    def look(self, running: Set[int], now: float, *, suspended: bool) -> Failure | Hang | None:
        """A node that takes too long to start its workers, or a hang among the running ranks; `suspended`: they stand still for a
        person. Looks seldom, however often it is called."""
        if now < self._looks_at:
            return None
        self._looks_at = now + LOOK_SECONDS
        self._hangs.suspend(now, suspended=suspended)
        return self.start.overdue(now) or self._hangs.find(running, now)

    def end(self) -> None:
        """The attempt is over: log what was not yet worth an event."""
        self.metrics.end()
        self.stragglers.end()

    def step_ahead(self) -> int:
        """A step that no rank has reached by the time it hears of it."""
        newest = max(self._hangs.steps().values(), default=0)
        return newest + max(LEAST_STEPS_AHEAD, math.ceil(self.rate * HEARD_SECONDS))


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
