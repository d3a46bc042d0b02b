"""The GPUs of this machine, as the driver counts and names them, and which of them a worker has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtrain.common.lazy_dataclass import dataclass

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"
"""The order in which the driver's library and nvidia-smi count; CUDA's own default begins with the fastest GPU."""
UNKNOWN = "number-"
"""Begins what stands for a UUID that no driver tells."""
DEVICES = Path("/dev")
DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Gpu:
    """One GPU, or a slice of one."""

    name: str
    """What CUDA_VISIBLE_DEVICES calls it: its number on the PCI bus, its UUID, or the UUID of a slice."""
    uuid: str
    """`number-3` where no driver tells it."""

    def __str__(self) -> str:
        """`GPU 3 (GPU-4a1c…)`."""
        return f"GPU {self.name}" + (f" ({self.uuid})" if self.uuid not in (self.name, f"{UNKNOWN}{self.name}") else "")


def library() -> Any | None:
    """Return NVIDIA's library, initialised; None where nvidia-ml-py is not installed or the driver does not answer."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  ImportError, or one of many errors of the library
        return None
    return pynvml


def installed() -> list[Gpu]:
    """List all GPUs of this machine in the order of the PCI bus."""
    nvml = library()
    uuids = [_uuid(nvml, number) for number in range(nvml.nvmlDeviceGetCount())] if nvml else []
    with suppress(OSError):
        uuids = uuids or re.findall(r"GPU UUID:\s*(GPU-\S+)", "".join(map(Path.read_text, _driver_files())))
    if not uuids:
        uuids = [f"{UNKNOWN}{number}" for number in range(device_files())]
    return [Gpu(str(number), uuid) for number, uuid in enumerate(uuids)]


def _uuid(nvml: Any, number: int) -> str:
    try:
        return _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(number)))
    except nvml.NVMLError:  # the driver has lost it
        return f"{UNKNOWN}{number}"


def handle(nvml: Any, one: Gpu) -> Any:
    """Return the library's handle of a GPU or a slice; raises the library's own error."""
    if one.uuid.startswith(UNKNOWN):
        return nvml.nvmlDeviceGetHandleByIndex(int(one.uuid.removeprefix(UNKNOWN)))
    return nvml.nvmlDeviceGetHandleByUUID(one.uuid)


def bus_of(one: Gpu) -> str:
    """Return the address of a GPU on the PCI bus as sysfs writes it: `0000:3b:00.0`; '' if nobody tells it, or for a slice."""
    if nvml := library():
        with suppress(nvml.NVMLError):
            domain, _, rest = _text(nvml.nvmlDeviceGetPciInfo(handle(nvml, one)).busId).lower().partition(":")
            return f"{domain[-4:]}:{rest}"
    for path in _driver_files():
        with suppress(OSError):
            if re.search(rf"GPU UUID:\s*{re.escape(one.uuid)}\s", path.read_text()):
                return path.parent.name
    return ""


def device_files() -> int:
    """Count the GPUs that have a device file."""
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in DEVICES.glob("nvidia[0-9]*"))


def named(environment: Mapping[str, str] = os.environ) -> list[str] | None:
    """Return the parts of CUDA_VISIBLE_DEVICES up to the first that is none; None if it is not set."""
    if environment.get(VISIBLE) is None:
        return None
    parts = [part.strip() for part in environment[VISIBLE].split(",")]
    end = next((place for place, part in enumerate(parts) if part in ("", "-1")), len(parts))
    return parts[:end]


def visible(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """List the GPUs that a program with these variables may use, in its order."""
    there, names = installed(), named(environment)
    return there if names is None else [found_in(there, name) for name in names]


def found_in(there: list[Gpu], name: str) -> Gpu:
    """Find the GPU that a number, a UUID or the unique beginning of one names; its UUID is the name itself if nobody knows it."""
    if name.isdigit():
        return Gpu(name, there[int(name)].uuid if int(name) < len(there) else f"{UNKNOWN}{name}")
    matches = [one.uuid for one in there if one.uuid.startswith(name)]
    return Gpu(name, matches[0] if len(matches) == 1 else name)


def number_of(local_rank: int) -> int | None:
    """Return the driver's number of the GPU that this worker of a node has; None for a slice, and if nobody knows it."""
    names = named()
    if names is None or local_rank >= len(names):
        return local_rank
    if names[local_rank].isdigit():
        return int(names[local_rank])
    there = installed()
    uuid = found_in(there, names[local_rank]).uuid
    return next((number for number, one in enumerate(there) if one.uuid == uuid), None)


def name_of(local_rank: int) -> str:
    """`GPU 3 (GPU-4a1c…)` for the GPU of this worker of a node; without the UUID where nobody tells it."""
    seen = visible()
    return str(seen[local_rank]) if local_rank < len(seen) else f"GPU {local_rank}"


def _driver_files() -> list[Path]:
    return sorted(DRIVER.glob("*/information"))


def _text(value: str | bytes) -> str:
    """Older versions of the library give bytes."""
    return value.decode() if isinstance(value, bytes) else value
