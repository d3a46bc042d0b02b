"""How the workers of an attempt find each other: the ports that their nodes reserved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dtrain.api.strategy import RankInfo, RendezvousInfo


class Rendezvous:
    """Collects the reserved ports of every node of an attempt; complete when all nodes answered."""

    def __init__(self, addresses: Mapping[str, str], ranks: Mapping[str, Sequence[RankInfo]]) -> None:
        self._addresses = addresses
        self._ranks = ranks
        self._ports: dict[str, tuple[int, ...]] = {}

    def ports_wanted(self, node: str) -> int:
        """Return the number of ports of a node: one a worker and one more, which on the first node serves what rank
        0 serves (Horovod's rendezvous)."""
        return len(self._ranks[node]) + 1

    def address(self, node: str) -> str:
        """Return the address of a node."""
        return self._addresses[node]

    def add(self, node: str, ports: tuple[int, ...]) -> None:
        """A node reserved its ports."""
        self._ports[node] = ports

    @property
    def complete(self) -> bool:
        """Whether every node has answered."""
        return len(self._ports) == len(self._ranks)

    def info(self, run_id: str, attempt: int, restarts: int) -> RendezvousInfo:
        """Addresses and ports of all ranks."""
        order = [node for node, ranks in self._ranks.items() for _ in ranks]
        return RendezvousInfo(
            addresses=tuple(self._addresses[node] for node in order),
            ports=tuple(port for node in self._ranks for port in self._ports[node][:-1]),
            service=self._ports[order[0]][-1],
            run_id=run_id,
            attempt=attempt,
            restarts=restarts,
        )


def of_rank_zero(info: RendezvousInfo) -> RendezvousInfo:
    """Reduce the addresses to rank 0's, for workers that need not know all others: sending all addresses to all
    workers is O(n²)."""
    return dataclasses.replace(info, addresses=info.addresses[:1], ports=info.ports[:1])
