"""The nodes that a run has on its allocation: whether they suffice, which are left out, and what comes in place of lost ones."""

from __future__ import annotations

from collections.abc import Callable

from dtrain.api.cluster import Allocation
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import AgentReady
from dtrain.common.errors import ClusterError, Exit
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir
from dtrain.supervisor.beside.background import Lane, TaskDone
from dtrain.supervisor.nodes.avoidance import NodeAvoidance
from dtrain.supervisor.nodes.pool import AgentInfo, NodePool, node_problem
from dtrain.supervisor.nodes.preflight import NodePreflight
from dtrain.supervisor.nodes.replacement import NodeReplacement
from dtrain.supervisor.outcome import RunResult

MOST_FAILED_STARTS = 3


class Nodes:
    """The nodes of one run."""

    def __init__(
        self, run: RunDir, plan: LaunchPlan, allocation: Allocation, log: EventLog, put: Callable[[TaskDone], None]
    ) -> None:
        lane = Lane("cluster", put)
        self._run = run
        self._plan = plan
        self._allocation = allocation
        self._log = log
        self.pool = NodePool(plan.job.recovery.heartbeat_seconds)
        self.preflight = NodePreflight(run, plan, allocation, log)
        self.avoidance = NodeAvoidance(run, plan, allocation, self.pool, lane, log)
        self._replacement = NodeReplacement(allocation, self.pool, lane)
        self._awaited = ""

    def suffice(self, *, late: bool) -> bool:
        """Whether all nodes are ready, or no more are coming and the run can do with those that are."""
        if len(self.pool.usable()) >= self._plan.nodes:
            return True
        return (late or not self._replacement.coming()) and self.fitting() > 0

    def waiting(self) -> bool:
        """Return whether the nodes cannot start before something is free; says what and who has it, whenever that changes."""
        why = self._allocation.waits_for()
        if why != self._awaited:
            self._log.add(events.NodesAwaited(why=why))
        self._awaited = why
        return bool(why)

    def fitting(self) -> int:
        """The largest number of usable nodes that an attempt can run on; 0 if there is none."""
        most = min(len(self.pool.usable()), self._plan.nodes)
        return next((n for n in range(most, 0, -1) if n == self._plan.nodes or self._plan.fits(n)), 0)

    def check(self, *, late: bool, failed: bool, requeues: bool) -> RunResult | None:
        """A result if too few nodes are left after a failure and the cluster requeues; raises `ClusterError` if it does not."""
        if len(self.pool.usable()) >= self._plan.nodes:
            return None
        if self.pool.failed_to_start:
            self._retry_failed_starts(failed=failed)
        if (self._replacement.coming() and not late) or self.fitting():
            return None
        ready = f"{len(self.pool.usable())} of {self._plan.nodes} nodes"
        if failed and requeues:
            bad = tuple(sorted(self.pool.irreplaceable | self.pool.failed_to_start.keys()))
            return RunResult(Exit.GAVE_UP, f"{ready} are left", requeue=True, exclude=bad + self.avoidance.excluded())
        if not late and self._allocation.channels:
            return None
        seconds = self._plan.job.recovery.provision_seconds
        hint = self._allocation.shortage() or f"The agents' logs are in {self._run.logs}."
        when = f"were ready after {seconds:g} s" if late else "are left, and the cluster has no other"
        raise ClusterError(f"{ready} {when}", hint)

    def choose(self) -> list[AgentInfo]:
        """The nodes of the next attempt, in the cluster's order."""
        number = self.fitting() or self._plan.nodes
        chosen = self.pool.in_order(list(self._allocation.channels))[:number]
        self.avoidance.say_used(chosen)
        return chosen

    def add(self, node: str, ready: AgentReady, now: float) -> None:
        """An agent is ready; raises `DtrainError` if its node cannot do what the plan needs."""
        agent = AgentInfo(node, ready.address, ready.host, ready.sees_run)
        self._log.add(
            events.NodeReady(
                node=node, host=ready.host, address=ready.address, cpus=ready.cpus, gpus=ready.gpus, pid=ready.pid
            )
        )
        self.pool.add(agent, now)
        problem = node_problem(self._plan, self._run, ready, self.pool.unreachable())
        if problem:
            raise problem

    def replace_lost(self) -> None:
        """Ask the cluster for others in place of all lost nodes."""
        self._replacement.request()

    def _retry_failed_starts(self, *, failed: bool) -> None:
        """Some agents exited before they were ready: try each a few times."""
        reasons = self.pool.failed_to_start
        if len(reasons) <= MOST_FAILED_STARTS:
            self._replacement.request()
        elif not failed:
            node, reason = list(reasons.items())[-1]
            raise ClusterError(
                f"the agents end as soon as they are started: {node}: {reason}", f"See {self._run.logs}/agent-*.log."
            )
