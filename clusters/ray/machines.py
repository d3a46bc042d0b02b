"""The machines of a Ray cluster: their names, their free resources, and the label selector that keeps bundles off some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

NODE_LABEL = "ray.io/node-id"
"""A label that Ray puts on every node."""


class Machines:
    """Names and resources of the nodes of the cluster that this process is connected to. Methods ask Ray, unless they say otherwise."""

    def __init__(self, bundle: Mapping[str, float]) -> None:
        self._bundle = bundle
        self._names: dict[str, str] = {}
        """Id of a node → its name."""

    def known_name(self, node_id: str) -> str:
        """Does not ask Ray. The name that `look` gave a node; '' if it did not see it."""
        return self._names.get(node_id, "")

    def look(self) -> list[dict[str, Any]]:
        """Name the nodes of the cluster: after their host or, if several nodes are on one host, by address or id. Returns those that
        are alive, as `ray.nodes` describes them."""
        import ray

        nodes = ray.nodes()
        alive = [node for node in nodes if node["Alive"]]
        hosts = Counter(node["NodeManagerHostname"] for node in alive)
        addresses = Counter(node["NodeManagerAddress"] for node in alive)
        for node in nodes:
            host, address, node_id = node["NodeManagerHostname"], node["NodeManagerAddress"], node["NodeID"]
            other = address if addresses[address] < 2 else f"{address}/{node_id[:12]}"
            self._names.setdefault(node_id, host if hosts[host] < 2 else other)
        return alive

    def room(self, avoided: Collection[str]) -> bool:
        """Whether some living node that is not avoided could hold another bundle now."""
        from ray._private.state import available_resources_per_node

        alive = {node["NodeID"] for node in self.look()}
        free: Mapping[str, Mapping[str, float]] = available_resources_per_node()
        return any(
            node in alive and self._names.get(node) not in avoided and self._fits(there) for node, there in free.items()
        )

    def selector(self, avoided: Collection[str], bundles: int, placement: str) -> dict[str, str]:
        """A label selector that excludes the avoided nodes from a placement group; {} if no node is avoided, or if the other nodes
        are too few for so many bundles in this placement."""
        if not avoided:
            return {}
        alive = self.look()
        others = [node for node in alive if self._names[node["NodeID"]] not in avoided]
        never = [node["NodeID"] for node in alive if self._names[node["NodeID"]] in avoided]
        held = [self._held(node["Resources"]) for node in others]
        most = {"STRICT_SPREAD": sum(map(bool, held)), "STRICT_PACK": max(held, default=0)}.get(placement, sum(held))
        if not never or most < bundles:
            return {}
        return {NODE_LABEL: f"!in({','.join(never)})"}

    def _held(self, there: Mapping[str, float]) -> int:
        """Bundles that these resources can hold."""
        return min((int(there.get(name, 0) // amount) for name, amount in self._bundle.items() if amount), default=0)

    def _fits(self, there: Mapping[str, float]) -> bool:
        return all(there.get(name, 0) >= amount for name, amount in self._bundle.items())
