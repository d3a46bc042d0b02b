"""The environment variables by which each framework's own launcher tells a process its place."""

from __future__ import annotations

import json
import os

from dtrain.api.strategy import ERROR_FILE, RankInfo, RendezvousInfo


def torchrun(place: RankInfo, peers: RendezvousInfo) -> dict[str, str]:
    """torchrun's contract (PyTorch documentation, "torchrun (Elastic Launch)", Environment Variables)."""
    return {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.local_rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "GROUP_RANK": str(place.node_rank),
        "GROUP_WORLD_SIZE": str(place.nodes),
        "ROLE_RANK": str(place.rank),
        "ROLE_WORLD_SIZE": str(place.world_size),
        "ROLE_NAME": "default",
        "MASTER_ADDR": peers.addresses[0],
        "MASTER_PORT": str(peers.ports[0]),
        "TORCHELASTIC_RUN_ID": peers.run_id,
        "TORCHELASTIC_RESTART_COUNT": str(peers.attempt - 1),
        "TORCHELASTIC_MAX_RESTARTS": str(peers.restarts),
        # The rendezvous is rank 0's to serve: here no agent serves one, as torchrun's does.
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": ERROR_FILE,
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    } | loopback(peers)


def tf_config(place: RankInfo, peers: RendezvousInfo) -> dict[str, str]:
    """TensorFlow's cluster resolver reads this (`tf.distribute.cluster_resolver.TFConfigClusterResolver`)."""
    workers = [f"{address}:{port}" for address, port in zip(peers.addresses, peers.ports, strict=True)]
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": place.rank}})}


def loopback(peers: RendezvousInfo) -> dict[str, str]:
    """On one machine: keep gloo's and NCCL's sockets off the network."""
    if peers.on_loopback:
        return {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"}
    return {}
