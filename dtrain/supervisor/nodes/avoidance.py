"""Keeps a run off nodes that failures began on (`dtrain.record.node_history`), as long as it can do without them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable
from functools import partial

from dtrain.api.cluster import Allocation
from dtrain.api.plan import LaunchPlan
from dtrain.common import environment
from dtrain.job.failure_kinds import Failure
from dtrain.record import events, node_history
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir
from dtrain.record.node_history import NodeRecord
from dtrain.supervisor.beside.background import Lane
from dtrain.supervisor.nodes.pool import AgentInfo, NodePool


def plan_without(plan: LaunchPlan, run: RunDir) -> LaunchPlan:
    """The plan with the nodes that its cluster is to leave out if it has others."""
    if not plan.job.recovery.avoid_hours:
        return plan
    known = node_history.read(run.path.parent, node_history.clock(run.path.parent))
    return dataclasses.replace(plan, avoided=tuple(node_history.avoided(known, plan.job.cluster.name)))


class NodeAvoidance:
    """The nodes that one run is kept off, on one allocation."""

    def __init__(
        self, run: RunDir, plan: LaunchPlan, allocation: Allocation, pool: NodePool, lane: Lane, log: EventLog
    ) -> None:
        self._run = run
        self._plan = plan
        self._pool = pool
        self._lane = lane
        self._log = log
        hours = plan.job.recovery.avoid_hours
        # What the drill does to a node is not the node's fault.
        self._allocation = allocation if hours and environment.HOOKS not in os.environ else None
        self._told: set[tuple[str, str]] = set()
        """(Node, what was said of it)."""
        self._slow: set[str] = set()
        """Machines that were replaced because the others waited for them."""
        self.looking = False
        """The cluster is being asked whether it has other nodes."""

    def on_failure(self, failure: Failure, attempt: int) -> None:
        """Keep what counts against a node."""
        if self._allocation is None or not failure.node or not (node := self._allocation.machine(failure.node)):
            return
        job = self._plan.job
        expires = node_history.clock(self._run.path.parent) + job.recovery.avoid_hours * 3600
        known = node_history.counted(failure, attempt, self._run, job.cluster.name, node, expires)
        if known is None:
            return
        try:
            node_history.add(self._run.path.parent, known)
        except OSError as error:
            problem = f"cannot write {node_history.file_in(self._run.path.parent)}: {error.strerror}"
            self._log.add(events.UserWarned(text=f"{problem}: later runs will not know of the failures of {node}"))

    def look(self, leave: Callable[[str, str], None], then: Callable[[], None]) -> None:
        """Before another attempt, `leave` the nodes to be avoided (agent, why), if there are enough others or the
        cluster has some; `then` is called when that is known."""
        records = self._records()
        unwanted = records.keys() | self._slow
        if self._allocation is None or not unwanted:
            then()
            return
        self.looking = True
        self._find_others(unwanted, lambda found: self._decide(records, leave, then, elsewhere=found))

    def replace(self, node: str, drain: Callable[[], None], keep: Callable[[], None]) -> None:
        """`drain`, if the run can go on without this node, which is avoided from then on; `keep` if it cannot."""
        if self._allocation is None or not (machine := self._allocation.machine(node)):
            keep()
            return
        unwanted = {machine} | self._unwanted()

        def decide(found: bool) -> None:  # noqa: FBT001
            if not found:
                keep()
                return
            assert self._allocation is not None
            self._slow.add(machine)
            self._allocation.avoid(unwanted)
            self._pool.draining.add(node)
            drain()

        self._find_others(unwanted, decide)

    def say_used(self, agents: Iterable[AgentInfo]) -> None:
        """An attempt begins on these: say which are nodes that would be avoided if there were others."""
        records = self._records()
        if self._allocation and records:
            there = {self._allocation.machine(agent.name) for agent in agents}
            self._say_used({node: record for node, record in records.items() if node in there})

    def excluded(self) -> tuple[str, ...]:
        """For a cluster that starts the run again."""
        return tuple(self._unwanted())

    def _unwanted(self) -> set[str]:
        """Machines to be left out."""
        return self._records().keys() | self._slow

    def _find_others(self, unwanted: Collection[str], done: Callable[[bool], None]) -> None:
        """`done` is called with whether the run can do without these machines: at once if enough others are ready, otherwise when the
        cluster has answered."""
        assert self._allocation is not None
        if self._suffice(self._others(unwanted)):
            done(True)  # noqa: FBT003
        else:
            self._lane.run(partial(self._allocation.has_others, unwanted), lambda answer: done(answer is True))

    def _others(self, unwanted: Collection[str]) -> int:
        """Usable nodes that are none of these."""
        assert self._allocation is not None
        return sum(self._allocation.machine(agent.name) not in unwanted for agent in self._pool.usable())

    def _decide(
        self,
        records: dict[str, NodeRecord],
        leave: Callable[[str, str], None],
        then: Callable[[], None],
        *,
        elsewhere: bool,
    ) -> None:
        self.looking = False
        assert self._allocation is not None
        self._allocation.avoid(records.keys() | self._slow if elsewhere else ())
        for agent in self._pool.usable() if elsewhere else ():
            record = records.get(self._allocation.machine(agent.name))
            if record:
                leave(agent.name, f"it is avoided: {len(record.failures)} failures began on it")
        if elsewhere:
            self._say_avoided(records)
        then()

    def _records(self) -> dict[str, NodeRecord]:
        if self._allocation is None:
            return {}
        runs = self._run.path.parent
        return node_history.avoided(node_history.read(runs, node_history.clock(runs)), self._plan.job.cluster.name)

    def _suffice(self, nodes: int) -> bool:
        return nodes >= self._plan.nodes or any(self._plan.fits(count) for count in range(1, nodes + 1))

    def _say_avoided(self, records: dict[str, NodeRecord]) -> None:
        for node, record in self._new(records, "avoided"):
            self._log.add(
                events.NodeAvoided(
                    node=node, until=record.avoided_until or 0.0,
                    evidence=tuple(failure.told for failure in record.failures),
                )
            )  # fmt: skip

    def _say_used(self, records: dict[str, NodeRecord]) -> None:
        for node, record in self._new(records, "used"):
            self._log.add(
                events.UserWarned(
                    text=f"{len(record.failures)} failures began on {node} ({record.failures[-1].told}), and there are too few "
                    f"other nodes: the run goes on with it (dtrain nodes --forget {node})"
                )
            )

    def _new(self, records: dict[str, NodeRecord], what: str) -> list[tuple[str, NodeRecord]]:
        found = [(node, record) for node, record in records.items() if (node, what) not in self._told]
        self._told |= {(node, what) for node, _ in found}
        return found
