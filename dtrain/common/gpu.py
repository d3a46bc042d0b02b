"""The GPU that a worker of a node has, as the driver counts and names it."""

from __future__ import annotations

import os


def number_of(local_rank: int) -> int:
    """The driver's number of the GPU that this worker of a node has."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return int(visible[local_rank]) if local_rank < len(visible) and visible[local_rank].isdigit() else local_rank


def name_of(local_rank: int) -> str:
    """`GPU 3 (GPU-4a1c…)` for the GPU of this worker of a node; without the UUID where nvidia-ml-py or the driver does not answer."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    chosen = visible[local_rank] if local_rank < len(visible) else ""
    if chosen and not chosen.isdigit():
        return f"GPU {chosen}"
    number = number_of(local_rank)
    try:
        import pynvml

        pynvml.nvmlInit()
        return f"GPU {number} ({pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(number))})"
    except Exception:  # noqa: BLE001  it is not installed, or the GPU is gone
        return f"GPU {number}"
