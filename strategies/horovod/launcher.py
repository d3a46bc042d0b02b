"""What Horovod needs wherever it runs: its rendezvous served by rank 0, and the environment that names it.

`horovodrun` does the same (horovod/runner/gloo_run.py); no MPI and no `horovodrun` is needed here.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dtrain.api.strategy import RankInfo, RendezvousInfo, WorkerContext
from dtrain.common.errors import FrameworkMissing

MISSING = "Horovod is not installed: its last release does not build as it is. Build it with: python -P -m dtrain.strategies.horovod.build"


def environment(place: RankInfo, peers: RendezvousInfo) -> dict[str, str]:
    """As `horovodrun` sets it (`create_slot_env_vars`, `create_run_env_vars`)."""
    result = {
        "HOROVOD_HOSTNAME": f"node{place.node_rank}",
        "HOROVOD_RANK": str(place.rank),
        "HOROVOD_SIZE": str(place.world_size),
        "HOROVOD_LOCAL_RANK": str(place.local_rank),
        "HOROVOD_LOCAL_SIZE": str(place.local_world_size),
        "HOROVOD_CROSS_RANK": str(place.node_rank),
        "HOROVOD_CROSS_SIZE": str(place.nodes),
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": peers.addresses[0],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(peers.service),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }
    if peers.on_loopback:
        result["HOROVOD_GLOO_IFACE"] = "lo"
    return result


@contextmanager
def rendezvous(joining: WorkerContext) -> Iterator[None]:
    """Serve Horovod's key-value store on the port reserved for it, from a thread of rank 0."""
    require()
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    place, peers = joining.place, joining.peers
    hosts = ",".join(f"node{number}:{place.local_world_size}" for number in range(place.nodes))
    server = RendezvousHTTPServer((peers.addresses[0], peers.service), RendezvousHandler, 0)
    server.init(get_host_assignments(parse_hosts(hosts), place.world_size))
    thread = threading.Thread(target=server.serve_forever, name="horovod-rendezvous", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def installed() -> bool:
    """Whether Horovod can be imported; importing it would import a framework."""
    return importlib.util.find_spec("horovod") is not None


def require() -> None:
    """Raise `FrameworkMissing`, which says how to build it, if Horovod is not there."""
    if not installed():
        raise FrameworkMissing(MISSING)
