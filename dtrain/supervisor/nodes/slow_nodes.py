"""Has a node that the others wait for replaced, if the recipe wants it (`recovery.replace_stragglers`)."""

from __future__ import annotations

from collections.abc import Callable

from dtrain.job.job import Recovery
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.supervisor.failures.stragglers import Stragglers
from dtrain.supervisor.nodes.avoidance import NodeAvoidance


class SlowNodes:
    """Replaces the slow nodes of one run. A rank that is slow on two nodes is slow by its own work, and no third
    node is tried."""

    def __init__(
        self, avoidance: NodeAvoidance, settings: Recovery, log: EventLog, request_resize: Callable[[str], None]
    ) -> None:
        self._avoidance = avoidance
        self._wanted = settings.replace_stragglers
        self._log = log
        self._request_resize = request_resize
        self._moved: dict[int, str] = {}
        """Rank → the node that it was slow on before."""

    def look(self, stragglers: Stragglers) -> None:
        """Have the nodes of new stragglers replaced."""
        for rank, node in stragglers.take() if self._wanted else ():
            if rank in self._moved:
                self._warn(f"rank {rank} is slow on {node} as it was on {self._moved[rank]}: it is not the node")
            else:
                self._replace(rank, node)

    def _replace(self, rank: int, node: str) -> None:
        def drain() -> None:
            self._moved[rank] = node
            self._request_resize(f"{node} is replaced, since the others wait for rank {rank}")

        self._avoidance.replace(
            node, drain, lambda: self._warn(f"the others wait for rank {rank}, and there is no other node than {node}")
        )

    def _warn(self, text: str) -> None:
        self._log.add(events.UserWarned(text=text))
