"""The needs of Horovod wherever it runs: its rendezvous, served by rank 0, and the environment that names it.

`horovodrun` does the same (horovod/runner/gloo_run.py); no MPI and no `horovodrun` is needed here.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dtrain.api.strategy import RankInfo, RendezvousInfo, WorkerContext
from dtrain.common.errors import FrameworkMissing
from dtrain.job.job import Job

from .. import environments

MISSING = "Horovod is not installed: its last release does not build as it is. Build it with: python -P -m dtrain.strategies.horovod.build"

WITHOUT_NCCL = (
    "this Horovod was built without NCCL: gradients are averaged on the host. Build it on a machine with CUDA: "
    "HOROVOD_GPU_OPERATIONS=NCCL python -P -m dtrain.strategies.horovod.build"
)


def environment(rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
    """Return the variables that `horovodrun` sets (`create_slot_env_vars`, `create_run_env_vars`); gloo is for tensors on CPUs, what GPUs use was
    decided when Horovod was built (HOROVOD_GPU_OPERATIONS)."""
    return {
        "HOROVOD_HOSTNAME": f"node{rank_info.node_rank}",
        "HOROVOD_RANK": str(rank_info.rank),
        "HOROVOD_SIZE": str(rank_info.world_size),
        "HOROVOD_LOCAL_RANK": str(rank_info.local_rank),
        "HOROVOD_LOCAL_SIZE": str(rank_info.local_world_size),
        "HOROVOD_CROSS_RANK": str(rank_info.node_rank),
        "HOROVOD_CROSS_SIZE": str(rank_info.nodes),
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": rendezvous.addresses[0],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(rendezvous.service),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    } | environments.sockets(rendezvous, "HOROVOD_GLOO_IFACE")


@contextmanager
def rendezvous_server(context: WorkerContext) -> Iterator[None]:
    """Serve Horovod's key-value store on the port reserved for it, from a thread of rank 0."""
    require()
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    rank_info, rendezvous = context.rank_info, context.rendezvous
    hosts = ",".join(f"node{number}:{rank_info.local_world_size}" for number in range(rank_info.nodes))
    server = RendezvousHTTPServer((rendezvous.addresses[0], rendezvous.service), RendezvousHandler, 0)
    server.init(get_host_assignments(parse_hosts(hosts), rank_info.world_size))
    thread = threading.Thread(target=server.serve_forever, name="horovod-rendezvous", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def say_without_nccl(horovod: Any, job: Job) -> None:
    """Say in the log of a run on GPUs that gradients go through the host, if this Horovod was built so (`horovod`: its module for a framework)."""
    if job.resources.device == "gpu" and horovod.rank() == 0 and not horovod.nccl_built():
        print(f"dtrain: {WITHOUT_NCCL}")


def installed() -> bool:
    """Whether Horovod can be imported; importing it would import a framework."""
    return importlib.util.find_spec("horovod") is not None


def require() -> None:
    """Raise `FrameworkMissing`, which says how to build it, if Horovod is not there."""
    if not installed():
        raise FrameworkMissing(MISSING)
