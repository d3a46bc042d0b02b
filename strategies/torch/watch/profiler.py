"""A profile of PyTorch's own profiler, as Chrome's trace format, which Perfetto and TensorBoard open. Importing this module imports no
framework.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MOST_OPERATIONS = 10
SUFFIX = ".pt.trace.json.gz"


class TorchProfiler:
    """A profile of this process, its GPU included."""

    def __init__(self, device: Any) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profile = profile(activities=activities)
        self._profile.start()

    def stop(self, file: Path) -> str:
        self._profile.stop()
        self._profile.export_chrome_trace(f"{file}{SUFFIX}")
        order = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        averages = self._profile.key_averages()
        return str(averages.table(sort_by=order, row_limit=MOST_OPERATIONS, max_name_column_width=40))
