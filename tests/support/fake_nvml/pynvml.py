"""NVIDIA's library as a test wants it, for the processes of a real run: PYTHONPATH puts it before the installed one, and the file that
FAKE_NVML names holds the GPUs."""

# ruff: noqa: N802, N816  the names are the library's

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_TEMPERATURE_GPU = 0
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_VOLATILE_ECC = 0
NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR = 1
nvmlClocksEventReasonHwThermalSlowdown = 0x40
nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80
nvmlClocksEventReasonHwSlowdown = 0x8


class NVMLError(Exception):
    """Any error of the library."""


def _gpus() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(os.environ["FAKE_NVML"]).read_text())
    return found


def _known(handle: int, name: str) -> Any:
    if name not in _gpus()[handle]:
        raise NVMLError(f"{name} is not supported")
    return _gpus()[handle][name]


def nvmlInit() -> None:
    if "FAKE_NVML" not in os.environ:
        raise NVMLError("driver not loaded")


def nvmlDeviceGetCount() -> int:
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(number: int) -> int:
    if number >= len(_gpus()) or _gpus()[number].get("lost"):
        raise NVMLError("GPU is lost")
    return number


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    for number, one in enumerate(_gpus()):
        if one["uuid"] == uuid:
            return nvmlDeviceGetHandleByIndex(number)
    raise NVMLError("Not Found")


def nvmlDeviceGetUUID(handle: int) -> str:
    return str(_known(handle, "uuid"))


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=_known(handle, "busy"))


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    used, total = _known(handle, "used"), _known(handle, "total")
    return SimpleNamespace(used=used, total=total, free=total - used)


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in _known(handle, "processes")]


def nvmlDeviceGetPciInfo(handle: int) -> SimpleNamespace:
    return SimpleNamespace(busId=_known(handle, "bus"))


def nvmlDeviceGetTotalEccErrors(handle: int, kind: int, counter: int) -> int:
    return int(_known(handle, "ecc"))


def nvmlDeviceGetRemappedRows(handle: int) -> tuple[int, int, int, int]:
    correctable, uncorrectable, pending, failed = _known(handle, "remapped")
    return correctable, uncorrectable, pending, failed


def nvmlDeviceGetRetiredPagesPendingStatus(handle: int) -> int:
    return int(_known(handle, "pages_pending"))


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: int) -> int:
    return int(_known(handle, "throttling"))
