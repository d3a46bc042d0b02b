"""Binds a worker, and all that it starts, to the CPUs next to its GPUs, or to cores of its own (`resources.numa`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from dtrain.api.strategy import RankInfo
from dtrain.common import gpu
from dtrain.common.gpu import Gpu

SYSFS = Path("/sys")


def bind(rank_info: RankInfo, *, on_gpus: bool) -> str:
    """Bind this process before it starts threads; returns what was done, in one sentence."""
    allowed = os.sched_getaffinity(0)
    chosen, why = choice(rank_info, allowed, on_gpus=on_gpus)
    if not chosen:
        return f"not bound to CPUs (resources.numa): {why}"
    os.sched_setaffinity(0, chosen)
    return f"bound to the CPUs {ranges(chosen)}, {why} (resources.numa)"


def choice(rank_info: RankInfo, allowed: set[int], *, on_gpus: bool) -> tuple[set[int], str]:
    """Choose the CPUs of a rank among those that its node may use, and why these; none if nothing tells."""
    if on_gpus:
        first = rank_info.local_rank * rank_info.replicas
        return _next_to(gpu.visible()[first : first + rank_info.replicas], allowed)
    return _own_cores(rank_info.local_rank, rank_info.local_world_size, allowed)


def _next_to(gpus: Sequence[Gpu], allowed: set[int]) -> tuple[set[int], str]:
    names = " and ".join(map(str, gpus)) or "no GPU"
    found = set[int]()
    for one in gpus:
        bus = gpu.bus_of(one)
        with suppress(OSError, ValueError):
            found |= _numbers((SYSFS / "bus/pci/devices" / bus / "local_cpulist").read_text()) if bus else set()
    if not found & allowed:
        return set(), f"the system does not say which of the node's CPUs are next to {names}"
    return found & allowed, f"next to {names}"


def _own_cores(local_rank: int, ranks: int, allowed: set[int]) -> tuple[set[int], str]:
    """Choose an equal part of the cores, whole ones, in the order of the memory that they are next to."""
    cores = sorted({_siblings(cpu) & allowed for cpu in allowed}, key=lambda core: (_memory_node(min(core)), min(core)))
    each = len(cores) // ranks
    if not each:
        return set(), f"there are {len(cores)} cores for {ranks} workers"
    return set().union(*cores[local_rank * each : (local_rank + 1) * each]), f"{each} of {len(cores)} cores"


def _siblings(cpu: int) -> frozenset[int]:
    """Return the hardware threads of a CPU's core."""
    with suppress(OSError, ValueError):
        return frozenset(_numbers((SYSFS / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()))
    return frozenset({cpu})


def _memory_node(cpu: int) -> int:
    names = [path.name.removeprefix("node") for path in (SYSFS / f"devices/system/cpu/cpu{cpu}").glob("node[0-9]*")]
    return min((int(name) for name in names if name.isdigit()), default=0)


def _numbers(text: str) -> set[int]:
    """Read a list as the kernel writes it: `0-3,8`; raises `ValueError`."""
    found = set[int]()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def ranges(cpus: Iterable[int]) -> str:
    """Write numbers as the kernel does: `0-3,8`."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1][1:] = [cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)
