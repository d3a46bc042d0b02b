"""Looks at the nodes of an attempt before their first step, beside the start of the workers; what is wrong names the node.

A node is looked at once. What no attempt can do without (a run folder that can be written to, equal versions, nodes that reach each other)
ends the run; the rest is a warning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from dtrain.api.cluster import Allocation
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import CheckNode, CheckPeers, NodeAnswered, PeersChecked
from dtrain.common import node_limits as limits
from dtrain.common.errors import ClusterError
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir
from dtrain.supervisor.nodes.pool import AgentInfo

SKIP = "(resources.check_nodes: false looks at none of this.)"


class NodePreflight:
    """The checks of one run's nodes."""

    def __init__(self, run: RunDir, plan: LaunchPlan, allocation: Allocation, log: EventLog) -> None:
        self._run = run
        self._allocation = allocation
        self._log = log
        self._on_gpus = plan.job.resources.device == "gpu"
        self._wanted = plan.job.resources.check_nodes
        self._packages = tuple(dict.fromkeys(("dtrain", *(name.partition(".")[0] for name in plan.preload))))
        self._agents: dict[str, AgentInfo] = {}
        """Agents of the newest attempt."""
        self._asked: dict[str, float] = {}
        """Node → when it was asked."""
        self._answers: dict[str, NodeAnswered] = {}

    def begin(self, agents: Sequence[AgentInfo]) -> None:
        """An attempt begins on these nodes: ask those that were not asked before. Does not wait."""
        self._agents = {agent.name: agent for agent in agents}
        for agent in agents if self._wanted else ():
            channel = self._allocation.channels.get(agent.name)
            if channel and agent.name not in self._asked:
                self._asked[agent.name] = time.time()
                channel.send(CheckNode(self._packages, agent.sees_run, self._on_gpus))

    def handle(self, node: str, answer: NodeAnswered | PeersChecked) -> None:
        """Raises `ClusterError` if the run cannot go on with this node."""
        if node not in self._agents:
            return
        if isinstance(answer, PeersChecked):
            self._on_peers(node, answer)
            return
        if answer.problem:
            raise ClusterError(
                f"{self._told(node)} cannot write to the run folder {self._run.path}: {answer.problem}",
                f"Put it where all nodes may write (--runs FOLDER). {SKIP}",
            )
        self._compare_versions(node, answer)
        warnings = tuple(self._warnings(node, answer))
        self._log.add(events.NodeChecked(node=node, versions=answer.versions, warnings=warnings))
        for text in warnings:
            self._log.add(events.UserWarned(text=text))
        self._answers[node] = answer
        if len(self._agents) > 1 and self._agents.keys() <= self._answers.keys():
            self._ask_for_peers()

    def _compare_versions(self, node: str, answer: NodeAnswered) -> None:
        for other, known in self._answers.items():
            for package in sorted(known.versions.keys() & answer.versions.keys()):
                there, here = known.versions[package], answer.versions[package]
                if there != here:
                    raise ClusterError(
                        f"{self._told(node)} has {package} {here}, and {self._told(other)} has {there}",
                        f"Install the same everywhere. {SKIP}",
                    )

    def _warnings(self, node: str, answer: NodeAnswered) -> Iterator[str]:
        now = time.time()
        # The node read its clock at some moment between the question and the answer.
        apart = max(self._asked[node] - answer.clock, answer.clock - now, 0.0)
        if apart > limits.MOST_CLOCK_SECONDS:
            yield f"the clock of {self._told(node)} is off by {apart:.1f} s: {limits.CLOCK_REMEDY}"
        if answer.disk_free is not None and answer.disk_free < limits.LEAST_DISK:
            yield f"{self._told(node)} has {answer.disk_free / 1e9:.2f} GB free in {self._run.path}: {limits.DISK_REMEDY}"
        shared = answer.shared_memory_free
        if shared is not None and shared < limits.LEAST_SHARED_MEMORY:
            yield f"{self._told(node)} has {shared / 1e6:.0f} MB free in /dev/shm: {limits.SHARED_MEMORY_REMEDY}"
        yield from (f"{self._told(node)}: {trouble}" for trouble in answer.troubles)

    def _ask_for_peers(self) -> None:
        """Have each node try the next one and the first one, where the rendezvous is: that takes no longer on many
        nodes."""
        names = list(self._agents)
        for place, node in enumerate(names):
            others = {names[(place + 1) % len(names)], names[0]} - {node}
            peers = {name: (self._agents[name].address, port) for name in others if (port := self._answers[name].port)}
            channel = self._allocation.channels.get(node)
            if channel and peers:
                channel.send(CheckPeers(peers))

    def _on_peers(self, node: str, answer: PeersChecked) -> None:
        for other, why in answer.unreachable.items():
            raise ClusterError(
                f"{self._told(node)} cannot reach {self._told(other)} at {why}",
                "Is there a firewall between them, or is that not its address on the network of the nodes (DTRAIN_ADDRESS)? "
                + SKIP,
            )

    def _told(self, node: str) -> str:
        agent = self._agents.get(node)
        return f"{node} ({agent.host})" if agent and agent.host != node else node
