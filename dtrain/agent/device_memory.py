"""Has a new attempt wait until the memory of its GPUs is free again: what a killed process held there is freed some time after its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dtrain.api.protocol import StartWorkers
from dtrain.common import gpu
from dtrain.common.gpu import Gpu
from dtrain.common.processes import name_of

LOOK_SECONDS = 0.1
SLACK_BYTES = 512 << 20
"""Less free memory than before that is no reason to wait: the driver's own use differs a little."""


class DeviceMemory:
    """The free memory of a node's GPUs, before the run's first workers and before later ones."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._before: dict[Gpu, int] = {}
        self._gpus: list[Gpu] = []
        self._deadline = 0.0
        self._look_at = 0.0

    def begin(self, start: StartWorkers) -> None:
        """Begin to wait for the memory that workers need; the first time, note what is free."""
        if not start.device_wait_seconds:
            return
        self._gpus = gpu.visible()[: sum(rank.replicas for rank in start.ranks)]
        self._deadline, self._look_at = time.monotonic() + start.device_wait_seconds, 0.0
        nvml = gpu.library()
        for one in self._gpus if nvml else ():
            if one not in self._before and (memory := _memory(nvml, one)):
                self._before[one] = int(memory.free)

    def ready(self) -> bool:
        """Return whether as much is free as before the run, or it was waited for long enough, which is said with who holds it; does not wait."""
        now = time.monotonic()
        if not self._gpus or now < self._look_at:
            return not self._gpus
        self._look_at = now + LOOK_SECONDS
        nvml = gpu.library()
        lacking = [(one, lack) for one in self._gpus if nvml and (lack := self._lack(nvml, one)) > SLACK_BYTES]
        if lacking and now < self._deadline:
            return False
        for one, lack in lacking:
            self._warn(
                f"{one} has {lack / 1e9:.1f} GB less free than before this run's first start, "
                f"held by {_holders(nvml, one)}: the workers start all the same (recovery.device_wait_seconds)"
            )
        self._gpus = []
        return True

    def _lack(self, nvml: Any, one: Gpu) -> int:
        memory = _memory(nvml, one)
        return self._before.get(one, 0) - int(memory.free) if memory else 0


def _memory(nvml: Any, one: Gpu) -> Any | None:
    with suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetMemoryInfo(gpu.handle(nvml, one))
    return None


def _holders(nvml: Any, one: Gpu) -> str:
    """Name the processes that the driver knows on a GPU; in a container it may know them by other numbers."""
    told = []
    with suppress(nvml.NVMLError):
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu.handle(nvml, one)):
            size = f", {process.usedGpuMemory / 1e9:.1f} GB" if process.usedGpuMemory else ""
            told.append(f"{name_of(process.pid) or 'a process'} (process {process.pid}{size})")
    return ", ".join(told) or "no process that the driver names"
