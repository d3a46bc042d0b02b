"""The nodes of a run: which are ready, silent, draining, lost, or failed to start."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import FORMAT, AgentReady
from dtrain.common.errors import ClusterError, DtrainError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.folder import RunDir


@dataclass(frozen=True)
class AgentInfo:
    """A node whose agent is ready."""

    name: str
    address: str
    host: str
    sees_run: bool = True
    """False: the node does not see the run folder, and its agent must be told the job."""


class NodePool:
    """Knows every node that the cluster gave; it decides nothing."""

    def __init__(self, heartbeat_seconds: float) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._ready: dict[str, AgentInfo] = {}
        self._on_loopback: dict[str, AgentInfo] = {}
        """Ready agents with a loopback address."""
        self._heard: dict[str, float] = {}
        self.lost: set[str] = set()
        self.irreplaceable: set[str] = set()
        """Lost nodes that the cluster has nothing to replace with."""
        self.failed_to_start: dict[str, str] = {}
        """Agents that exited before reporting ready (agent → reason); cleared whenever one becomes ready."""
        self.draining: set[str] = set()
        """Nodes that the cluster is about to take away."""

    def add(self, agent: AgentInfo, now: float) -> None:
        """Add an agent that reported ready."""
        self.failed_to_start.clear()
        self._ready[agent.name] = agent
        if agent.address.startswith("127."):
            self._on_loopback[agent.name] = agent
        self._heard[agent.name] = now

    def heard(self, node: str, now: float) -> None:
        """Note that an agent is alive."""
        self._heard[node] = now

    def restart_clocks(self, now: float) -> None:
        """The supervisor itself was held up: nobody was silent, nobody was listened to."""
        self._heard = dict.fromkeys(self._heard, now)

    def silent(self, now: float) -> list[str]:
        """Nodes that said nothing for longer than a heartbeat may take."""
        return [node for node, heard in self._heard.items() if now - heard > self._heartbeat_seconds]

    def lose(self, node: str, reason: str) -> bool:
        """A node is gone; returns whether it was ready."""
        self._heard.pop(node, None)
        self._on_loopback.pop(node, None)
        self.draining.discard(node)
        self.lost.add(node)
        if self._ready.pop(node, None) is not None:
            return True
        self.failed_to_start[node] = reason
        return False

    def knows(self, node: str) -> bool:
        """Whether a node is ready or lost, so that it is not one that is still coming."""
        return node in self._ready or node in self.lost

    def usable(self) -> list[AgentInfo]:
        """Ready nodes that nobody is about to take away, in the order in which they became ready."""
        return [agent for name, agent in self._ready.items() if name not in self.draining]

    def in_order(self, names: Sequence[str]) -> list[AgentInfo]:
        """Usable nodes in the cluster's order, so that a node has the same ranks in every attempt."""
        place = {name: number for number, name in enumerate(names)}
        return sorted(self.usable(), key=lambda agent: place.get(agent.name, len(place)))

    def ready_and_draining(self) -> list[str]:
        """Nodes that still work but are to be left."""
        return [name for name in self._ready if name in self.draining]

    def unreachable(self) -> AgentInfo | None:
        """An agent whose address only its own host can reach while there are agents on other hosts; None if there is none."""
        own = next(iter(self._on_loopback.values()), None)
        others = own and any(agent.host != own.host for agent in self._ready.values())
        return own if others else None


def node_problem(plan: LaunchPlan, run: RunDir, ready: AgentReady, unreachable: AgentInfo | None) -> DtrainError | None:
    """Why a node cannot do what the plan needs, or another one cannot now that it is there; None if they can."""
    resources = plan.job.resources
    if ready.format != FORMAT:
        return ClusterError(
            f"the agent on {ready.host} speaks messages of the format {ready.format}, and this dtrain those of {FORMAT}",
            "Install the same version of dtrain on every node.",
        )
    if not ready.sees_run and not plan.job.storage.url:
        return ClusterError(
            f"the agent on {ready.host} does not see the run folder {run.path}",
            "Put it on a file system that all nodes share (--runs FOLDER), or give storage.url.",
        )
    if resources.device == "gpu" and ready.gpus < plan.workers_per_node:
        return ClusterError(
            f"{ready.host} has {ready.gpus} GPUs and the run needs {plan.workers_per_node} on each node",
            "Ask the cluster for nodes with as many GPUs, or lower resources.workers.",
        )
    if unreachable:
        return ClusterError(
            f"the host name of {unreachable.host} stands for {unreachable.address}, which other nodes cannot reach",
            f"Give {unreachable.host} its network address in /etc/hosts, or set DTRAIN_ADDRESS there.",
        )
    return None
