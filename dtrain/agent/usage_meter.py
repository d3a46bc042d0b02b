"""Measures how busy this node is, in a thread of its own: a driver that does not answer holds up nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dtrain.agent import devices
from dtrain.common import gpu
from dtrain.common.memory import machine_memory

SECONDS = 5.0
"""Pause between two measurements."""
Usage = dict[str, float]


class UsageMeter:
    """Measures in turn; each result is given out once."""

    def __init__(self) -> None:
        self._fresh: Usage = {}
        self._newest: Usage = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="usage", daemon=True)

    def start(self) -> None:
        """Start measuring."""
        self._thread.start()

    def take(self) -> Usage:
        """The newest measurement, if it was not taken yet; see `dtrain.api.protocol.Heartbeat`."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def of_gpu(self, local_rank: int) -> tuple[float | None, float | None]:
        """How busy the GPU of a worker was lately, 0 to 1, and the megabytes in use on it; None if it has none that is known."""
        number = gpu.number_of(local_rank)
        memory = self._newest.get(f"gpu{number}_memory_bytes")
        return self._newest.get(f"gpu{number}"), None if memory is None else round(memory / 1e6, 1)

    def stop(self) -> None:
        """Measure no more; does not wait."""
        self._over.set()

    def _work(self) -> None:
        read_gpus = _gpu_reader()
        before = cpu_times()
        while not self._over.wait(SECONDS):
            now = cpu_times()
            busy, total = now[0] - before[0], now[1] - before[1]
            before = now
            cpu = {"cpu": round(busy / total, 4)} if total > 0 else {}
            self._fresh = self._newest = cpu | memory_used() | read_gpus()


def cpu_times() -> tuple[int, int]:
    """Clock ticks that the processors of this machine were busy, and all of them, since it was started; (0, 0): unknown."""
    with suppress(OSError, ValueError, IndexError):
        ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    return 0, 0


def memory_used() -> Usage:
    """Memory of this machine that is in use and could not be given to another program."""
    with suppress(OSError, ValueError, KeyError):
        total, available = machine_memory()
        return {"memory_bytes": float(total - available)}
    return {}


def _gpu_reader() -> Callable[[], Usage]:
    """Return a reader of the GPUs that this process may use, if there are any and nvidia-ml-py is installed."""
    nvml = gpu.library() if devices.gpus() else None
    return partial(gpus_used, nvml, nvml.nvmlDeviceGetCount()) if nvml else dict


def gpus_used(pynvml: Any, count: int) -> Usage:
    """Utilisation and memory of each GPU; one that does not answer is left out."""
    found: Usage = {}
    for number in range(count):
        with suppress(pynvml.NVMLError):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            found[f"gpu{number}"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            found[f"gpu{number}_memory_bytes"] = float(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    return found
