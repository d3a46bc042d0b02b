"""Asks the cluster for other nodes in place of lost ones, beside the supervisor's loop."""

from __future__ import annotations

from functools import partial

from dtrain.api.cluster import Allocation
from dtrain.supervisor.beside.background import Lane
from dtrain.supervisor.nodes.pool import NodePool


class NodeReplacement:
    """The requests to replace a node that the cluster has not answered yet."""

    def __init__(self, allocation: Allocation, pool: NodePool, lane: Lane) -> None:
        self._allocation = allocation
        self._pool = pool
        self._lane = lane
        self._asked: set[str] = set()

    def request(self) -> None:
        """Ask for a replacement of every lost node that the allocation still holds; the answer comes through the inbox."""
        for node in self._channels():
            if node in self._pool.lost and node not in self._asked:
                self._asked.add(node)
                self._lane.run(partial(self._allocation.replace, node), partial(self._on_answer, node))

    def coming(self) -> bool:
        """Whether some node may still become ready."""
        return bool(self._asked) or any(not self._pool.knows(node) for node in self._channels())

    def _channels(self) -> list[str]:
        """A copy: the lane changes them."""
        return list(self._allocation.channels)

    def _on_answer(self, node: str, replaced: bool | Exception) -> None:  # noqa: FBT001  a task's result
        self._asked.discard(node)
        if isinstance(replaced, Exception):
            raise replaced
        if not replaced:
            self._pool.irreplaceable.add(node)
