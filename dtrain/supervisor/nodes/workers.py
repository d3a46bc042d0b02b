"""The workers of one attempt: the node of each, which of them still run, and the way to their agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dtrain.api.cluster import Channel
from dtrain.api.protocol import Command
from dtrain.api.strategy import RankInfo
from dtrain.supervisor.nodes.pool import AgentInfo


class Workers:
    """The ranks of one attempt on the nodes it was given."""

    def __init__(
        self, nodes: Sequence[AgentInfo], ranks: Sequence[Sequence[RankInfo]], channels: Mapping[str, Channel]
    ) -> None:
        self.nodes = nodes
        self.ranks = dict(zip((node.name for node in nodes), ranks, strict=True))
        """Node → its ranks, in the order of nodes."""
        self.owner = {rank.rank: node for node, own in self.ranks.items() for rank in own}
        """Rank → node."""
        self.running = set(self.owner)
        """Ranks that have not ended; before the start, all of them."""
        self.started = False
        self._channels = channels

    def __len__(self) -> int:
        return len(self.owner)

    def runs(self, rank: int) -> bool:
        """Whether the rank was started and has not ended."""
        return self.started and rank in self.running

    def running_on(self, wanted: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Node → those of these ranks (all, if none is named) that run there."""
        found = {node: [info.rank for info in own if self.runs(info.rank)] for node, own in self.ranks.items()}
        chosen = {node: tuple(rank for rank in own if not wanted or rank in wanted) for node, own in found.items()}
        return {node: own for node, own in chosen.items() if own}

    def lose(self, node: str) -> None:
        """A node is gone, and its workers with it."""
        self.running -= {info.rank for info in self.ranks[node]}

    def send(self, node: str, command: Command) -> None:
        """Send a command to the agent of a node; nothing, if the node is lost."""
        channel = self._channels.get(node)
        if channel:
            channel.send(command)

    def send_all(self, command: Command) -> None:
        """Send a command to all agents of the attempt."""
        for node in self.ranks:
            self.send(node, command)
