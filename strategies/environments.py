"""The environment variables by which each framework's own launcher tells a process its place."""

from __future__ import annotations

import json
import os

from dtrain.api.strategy import ERROR_FILE, RankInfo, RendezvousInfo
from dtrain.common import environment

LAZY = "TORCH_GLOO_LAZY_INIT"
MANY_RANKS = 256


def torchrun(rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
    """torchrun's contract (PyTorch documentation, "torchrun (Elastic Launch)", Environment Variables)."""
    return {
        "RANK": str(rank_info.rank),
        "LOCAL_RANK": str(rank_info.local_rank),
        "WORLD_SIZE": str(rank_info.world_size),
        "LOCAL_WORLD_SIZE": str(rank_info.local_world_size),
        "GROUP_RANK": str(rank_info.node_rank),
        "GROUP_WORLD_SIZE": str(rank_info.nodes),
        "ROLE_RANK": str(rank_info.rank),
        "ROLE_WORLD_SIZE": str(rank_info.world_size),
        "ROLE_NAME": "default",
        "MASTER_ADDR": rendezvous.addresses[0],
        "MASTER_PORT": str(rendezvous.ports[0]),
        "TORCHELASTIC_RUN_ID": rendezvous.run_id,
        "TORCHELASTIC_RESTART_COUNT": str(rendezvous.attempt - 1),
        "TORCHELASTIC_MAX_RESTARTS": str(rendezvous.restarts),
        # The rendezvous is rank 0's to serve: here no agent serves one, as torchrun's does.
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": ERROR_FILE,
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    } | sockets(rendezvous, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def tf_config(rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
    """TensorFlow's cluster resolver reads this (`tf.distribute.cluster_resolver.TFConfigClusterResolver`)."""
    workers = [f"{address}:{port}" for address, port in zip(rendezvous.addresses, rendezvous.ports, strict=True)]
    return {
        "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank_info.rank}})
    }


def lazy_gloo(rank_info: RankInfo) -> dict[str, str]:
    """Have gloo connect two ranks when they first need it: at this size the connections of all with all cost more."""
    many = rank_info.world_size >= MANY_RANKS and LAZY not in os.environ
    return {LAZY: "1"} if many else {}


def sockets(rendezvous: RendezvousInfo, *names: str) -> dict[str, str]:
    """Bind the sockets of gloo, NCCL and TensorPipe to the interface with the node's address: off the network on one machine, and on it
    where the host name stands for a loopback address (Debian, Ubuntu), which gloo would take. The user's own setting wins."""
    interface = "lo" if rendezvous.on_loopback else os.environ.get(environment.INTERFACE, "")
    return {name: interface for name in names if interface and name not in os.environ}
