"""The strategy that fits what is asked for, chosen without importing a framework, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.spec.job import Device, Job

from . import task_framework
from .script import Script, ScriptOptions

BYTES_A_PARAMETER = 16
"""Weights, gradients and the two moments of Adam in fp32 (Rajbhandari et al., ZeRO, 2020, section 3.1)."""
SHARE = 0.7
"""Of a device's memory that state may take, the rest being for activations."""


@dataclass(frozen=True)
class AutoOptions:
    """What cannot be seen from the recipe."""

    parameters: float | None = None
    """Of the model, if it may be too large for one device (`7e9`)."""
    device_memory_gb: float = 80.0
    """Of one device."""


class Auto:
    """Stands for another strategy; `dtrain plan` says which one and why."""

    Options = AutoOptions
    framework = None

    def __init__(self, options: AutoOptions) -> None:
        self.options = options

    def resolve(self, job: Job) -> tuple[str, dict[str, Any], str]:
        """See `MetaStrategy.resolve`."""
        if job.kind == "script":
            return Script(ScriptOptions()).resolve(job)
        framework = task_framework.of_task(job)
        resources = job.resources
        if framework == "tensorflow":
            return self._tensorflow(job)
        if resources.workers == 1:
            return "ddp", {}, "one worker: nothing to distribute, the model stays as it is"
        if (self.options.parameters or 0) * BYTES_A_PARAMETER > SHARE * self.options.device_memory_gb * 1e9:
            need = (self.options.parameters or 0) * BYTES_A_PARAMETER / 1e9
            name = "hsdp" if resources.nodes > 1 and resources.workers > resources.nodes else "fsdp"
            return (
                name,
                {},
                f"{need:.0f} GB of model and optimizer state do not fit a device of {self.options.device_memory_gb:g} GB",
            )
        return "ddp", {}, f"{resources.workers} workers, and the model fits each of them as far as is known"

    def _tensorflow(self, job: Job) -> tuple[str, dict[str, Any], str]:
        resources = job.resources
        if resources.device == "tpu":
            return "tpu", {}, "a TensorFlow task on TPUs"
        if resources.nodes > 1:
            return "multi_worker_mirrored", {}, f"a TensorFlow task on {resources.nodes} nodes"
        return "mirrored", {}, "a TensorFlow task on one node"

    def preload(self, job: Job) -> tuple[str, ...]:
        """Nothing: what it stands for does."""
        return ()

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """One a device, as scripts have it."""
        return workers_per_node

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """Only the rank."""
        return {"RANK": str(rank_info.rank)}
