"""Limits and GPUs of a node that will cost a run time or its life: for `dtrain doctor` and before a first step alike.

Sources: NVML's reference for ECC, remapped rows, retired pages and clock event reasons; NVIDIA's list of Xid errors; rdma-core and NCCL on locked
memory.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtrain.agent import devices
from dtrain.common import gpu, memory
from dtrain.common import node_limits as limits
from dtrain.common.gpu import Gpu
from dtrain.common.lazy_dataclass import dataclass

KERNEL_LOG = Path("/dev/kmsg")
XID = re.compile(r"NVRM: Xid \(PCI:(?P<bus>[0-9a-fA-F:.]+)\): (?P<number>\d+),? ?(?P<text>[^\n]*)")
OF_HARDWARE = {
    48: "double-bit ECC error", 61: "internal micro-controller halted", 62: "internal micro-controller halted", 63: "row remapping",
    64: "row remapping failed", 74: "NVLink error", 79: "GPU has fallen off the bus", 92: "many single-bit ECC errors",
    94: "contained memory error", 95: "uncontained memory error", 109: "context switch timeout", 119: "GSP did not answer", 120: "GSP error",
    140: "unrecovered ECC error",
}  # fmt: skip
"""Xid → what it is. Others, as 13 and 31, are mostly the program's."""
SLOWED = {0x08: "hardware slowdown", 0x40: "heat", 0x80: "the power supply"}
"""Bits of NVML's reasons for lower clocks that healthy GPUs do not have."""
LEAST_PROCESSES = 2048
BLOCK = 1 << 16


@dataclass(frozen=True)
class Trouble:
    """Something that a person should look at."""

    check: str
    text: str
    todo: str


def troubles(*, on_gpus: bool) -> list[Trouble]:
    """List everything of this node; what cannot be read is left out."""
    return [*_limits(), *(_of_gpus() if on_gpus else ())]


def _limits() -> Iterator[Trouble]:
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY and devices.INFINIBAND.is_dir():
        yield Trouble("locked memory", f"{locked / 1e6:.3g} MB at most (ulimit -l)", limits.LOCKED_MEMORY_REMEDY)
    quota, cpus = memory.cpu_quota(), devices.cpus()
    if quota is not None and quota < cpus - 0.5:
        yield Trouble("cpu limit", f"{quota:g} of the {cpus} CPUs may be used at a time", limits.CPU_LIMIT_REMEDY)
    processes = memory.most_processes()
    if processes is not None and processes < LEAST_PROCESSES:
        yield Trouble("processes", f"{processes} processes and threads at most", limits.PROCESSES_REMEDY)


def _of_gpus() -> Iterator[Trouble]:
    nvml, seen = gpu.library(), gpu.visible()
    if nvml:
        yield from _told_by_library(nvml, seen)
    yield from _in_kernel_log({gpu.bus_of(one): one for one in seen})


def _told_by_library(nvml: Any, seen: list[Gpu]) -> Iterator[Trouble]:
    for one in seen:
        try:
            handle = gpu.handle(nvml, one)
        except nvml.NVMLError as error:
            yield Trouble("gpu health", f"{one} does not answer: {error}", "Reset it (nvidia-smi -r), or the machine.")
            continue
        yield from _of_gpu(nvml, handle, one)


def _of_gpu(nvml: Any, handle: Any, one: Gpu) -> Iterator[Trouble]:
    """Yield what NVML tells of one GPU; a card that does not support a question is not asked it."""
    with suppress(nvml.NVMLError, AttributeError):
        kind, counter = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        if errors := nvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter):
            text = f"{one} had {errors} uncorrectable ECC errors since it was started"
            yield Trouble("gpu health", text, "Reset it (nvidia-smi -r); replace it if they come again.")
    with suppress(nvml.NVMLError, AttributeError):
        _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(handle)
        if failed:
            yield Trouble("gpu health", f"{one} could not remap a damaged row of its memory", "Replace it.")
        elif pending:
            yield Trouble("gpu health", f"{one} has damaged rows to remap", "Reset it (nvidia-smi -r).")
    with suppress(nvml.NVMLError, AttributeError):
        if nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle):
            yield Trouble("gpu health", f"{one} has pages to retire", "Reset it (nvidia-smi -r).")
    with suppress(nvml.NVMLError, AttributeError):
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        if why := [text for bit, text in SLOWED.items() if reasons & bit]:
            text = f"{one} is slowed down: {', '.join(why)}"
            yield Trouble("gpu health", text, "Look at its cooling and power: nvidia-smi -q -d PERFORMANCE.")


def _in_kernel_log(gpus: dict[str, Gpu]) -> Iterator[Trouble]:
    """Yield the newest error of the hardware of each of these GPUs (address on the bus → GPU)."""
    newest: dict[str, int] = {}
    for match in XID.finditer(_kernel_log()):
        bus = match["bus"].lower()
        bus = bus if "." in bus else f"{bus}.0"
        if int(match["number"]) in OF_HARDWARE and bus in gpus:
            newest[bus] = int(match["number"])
    for bus, number in newest.items():
        text = f"{gpus[bus]} had Xid {number} since the machine was started: {OF_HARDWARE[number]}"
        yield Trouble("gpu health", text, "See dmesg, and NVIDIA's list of Xid errors for what to do.")


def _kernel_log() -> str:
    """Return what is in the kernel's log, as far as this user may read it."""
    parts = []
    try:
        log = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        while True:
            try:
                part = os.read(log, BLOCK)
            except BrokenPipeError:  # a record was overwritten meanwhile: the next read goes on behind it
                continue
            except OSError:  # no more
                break
            if not part:
                break
            parts.append(part)
    finally:
        os.close(log)
    return b"".join(parts).decode(errors="replace")
