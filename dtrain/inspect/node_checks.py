"""Checks a node for `dtrain doctor`: `python -m dtrain.inspect.node_checks FOLDER CLUSTER`, once on each, prints its
findings as JSON.

It runs as the script of a run, so that what it finds is what a run would find. With a framework that can (see
`Strategy.measure_network`) the nodes' clocks are compared, too, and the bandwidth between neighbours is measured.
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from dtrain.agent import devices, node_health
from dtrain.common import installation
from dtrain.common import node_limits as limits
from dtrain.common.errors import DtrainError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.memory import machine_memory
from dtrain.launch import registry

MARK = "dtrain-doctor "
"""Begins the line with the findings."""
LEAST_FILES = 4096
SLOW_FOLDER_SECONDS = 0.1
"""Longest time for one small file with fsync: checkpoints, locks and event logs write such files all the time."""
SLOW_BYTES_PER_SECOND = 100e6


@dataclass(frozen=True)
class Finding:
    """One line of a doctor's report."""

    check: str
    state: Literal["ok", "warning", "problem"]
    text: str
    """The finding in words."""
    todo: str = ""
    """The remedy in words."""


def main() -> None:
    """Print what was found on this node, as one line after MARK."""
    folder, cluster = Path(sys.argv[1]), sys.argv[2]
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    leads = int(os.environ.get("LOCAL_RANK", "0")) == 0
    found = list(of_node(folder, cluster)) if leads else []
    if world > 1:
        found += of_group(rank, range(0, world, int(os.environ["LOCAL_WORLD_SIZE"])), world)
    if not leads:
        return
    node = {"node": socket.gethostname(), "rank": rank, "findings": [dataclasses.asdict(finding) for finding in found]}
    print(MARK + json.dumps(node), flush=True)


def of_node(folder: Path, cluster: str) -> Iterator[Finding]:
    """Everything that this machine can tell alone."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions, _processors, _gpus, _shared_memory, _limits, _health, _address, lambda: _time_left(cluster), lambda: _folder(folder),
    )  # fmt: skip
    for check in checks:
        try:
            yield from check()
        except (OSError, subprocess.SubprocessError, ValueError, DtrainError) as error:
            yield Finding(
                getattr(check, "__name__", "folder").strip("_<>"), "problem", str(error), "Look at this by hand."
            )


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")
    strategies = (registry.plugin_class("strategy", name) for name in registry.installed("strategy"))
    wanted = {getattr(strategy, "framework", None) for strategy in strategies} | set(registry.installed("cluster"))
    packages = importlib.metadata.packages_distributions()
    for module in ("dtrain", *sorted(str(name) for name in wanted if name in packages)):
        yield Finding(module, "ok", importlib.metadata.version(packages[module][0]))


def _processors() -> Iterator[Finding]:
    total, available = machine_memory()
    yield Finding("cpus", "ok", f"{devices.cpus()}")
    yield Finding("memory", "ok", f"{available / 1e9:.1f} of {total / 1e9:.1f} GB free")


def _gpus() -> Iterator[Finding]:
    count = devices.gpus()
    if not count:
        yield Finding("gpus", "ok", "none")
        return
    if not shutil.which("nvidia-smi"):
        yield Finding(
            "gpus", "warning", f"{count}, and no nvidia-smi", "Install the driver's tools to see its version."
        )
        return
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip().splitlines()
    yield Finding("gpus", "ok", f"{count}: {'; '.join(dict.fromkeys(lines))}")


def _shared_memory() -> Iterator[Finding]:
    free = shutil.disk_usage("/dev/shm").free
    text = f"/dev/shm has {free / 1e9:.1f} GB free"
    if free < limits.LEAST_SHARED_MEMORY:
        yield Finding("shared memory", "warning", text, f"Data loaders and NCCL use it: {limits.SHARED_MEMORY_REMEDY}.")
    else:
        yield Finding("shared memory", "ok", text)


def _limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < LEAST_FILES:
        yield Finding("open files", "warning", f"{files} at most", f"ulimit -n {LEAST_FILES}, or more.")
    else:
        yield Finding("open files", "ok", f"{files} at most")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked == resource.RLIM_INFINITY or not devices.INFINIBAND.is_dir():
        most = "any amount" if locked == resource.RLIM_INFINITY else f"{locked / 1e6:.3g} MB at most"
        yield Finding("locked memory", "ok", most)


def _health() -> Iterator[Finding]:
    """Check limits, and GPUs if there are any."""
    for trouble in node_health.troubles(on_gpus=devices.gpus() > 0):
        yield Finding(trouble.check, "warning", trouble.text, f"{trouble.todo[0].upper()}{trouble.todo[1:]}")


def _address() -> Iterator[Finding]:
    address = devices.address()
    with socket.socket() as probe:
        probe.bind((address, 0))
    if address.startswith("127.") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield Finding(
            "address", "problem", f"{address} is a loopback address", "Set DTRAIN_ADDRESS, or mend /etc/hosts."
        )
    else:
        yield Finding("address", "ok", f"{address}, and ports can be bound")


def _time_left(cluster: str) -> Iterator[Finding]:
    """Of the allocation that this process is in, where the cluster gives one for a time."""
    if left := registry.plugin_class("cluster", cluster).time_left():
        yield Finding("time left", "ok", left)


def _folder(folder: Path) -> Iterator[Finding]:
    """Locks, renames and the time of a small write, as every run needs them in its folder."""
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    low = free < limits.LEAST_DISK
    yield Finding(
        "disk", "warning" if low else "ok", text, f"Checkpoints need room: {limits.DISK_REMEDY}." if low else ""
    )
    path = folder / f".doctor-{socket.gethostname()}-{os.getpid()}"
    began = time.perf_counter()
    with open(path, "w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
    path.replace(path.with_suffix(".renamed"))
    path = path.with_suffix(".renamed")
    seconds = time.perf_counter() - began
    slow = seconds > SLOW_FOLDER_SECONDS
    yield Finding(
        "folder", "warning" if slow else "ok", f"a small file is on disk after {seconds * 1000:.1f} ms",
        "Every checkpoint waits for that: choose a faster file system with --runs." if slow else "",
    )  # fmt: skip
    with open(path) as one, open(path) as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Finding(
                "locks", "problem", "flock(2) locks nothing here", "Mount it with locks, or choose another --runs."
            )
        except BlockingIOError:
            yield Finding("locks", "ok", "flock(2) works")
    path.unlink()


def of_group(rank: int, leaders: Sequence[int], world: int) -> Iterator[Finding]:
    """Return what all nodes find out together, through the first rank of each: their clocks, and how fast neighbours
    reach each other."""
    kinds = [registry.plugin_class("strategy", name) for name in registry.installed("strategy")]
    measuring = [kind for kind in kinds if kind.measure_network]
    kind = next((kind for kind in measuring if importlib.util.find_spec(str(kind.framework))), None)
    if kind is None:
        extras = " or ".join(dict.fromkeys(installation.command(str(kind.framework)) for kind in measuring))
        yield Finding("network", "warning", "not measured", f"It is measured by a framework: {extras}.")
        return
    measured = kind.measure_network(rank, leaders, world)
    late = measured.clocks_apart > limits.MOST_CLOCK_SECONDS
    todo = f"{limits.CLOCK_REMEDY.capitalize()}." if late else ""
    yield Finding("clock", "warning" if late else "ok", f"all within {measured.clocks_apart:.3f} s", todo)
    for other, speed in measured.bytes_per_second.items():
        slow = speed < SLOW_BYTES_PER_SECOND
        todo = "Is that the network that it should be? GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose one."
        text = f"all_reduce of {measured.payload_bytes >> 20} MiB with rank {other}: {speed / 1e6:,.0f} MB/s"
        yield Finding("network", "warning" if slow else "ok", text, todo if slow else "")


if __name__ == "__main__":
    main()
