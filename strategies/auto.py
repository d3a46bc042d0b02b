"""The strategy that fits what is asked for, chosen without importing a framework, with the reason."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from dtrain.api.bench_choice import MeasuredStrategies, MeasuredStrategy, StrategyChoice, choice
from dtrain.api.strategy import RankInfo, RendezvousInfo, Strategy
from dtrain.job.job import Device, Job

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
    measured: bool = True
    """Take what `dtrain bench` measured to be the best, if it has measured this task on this machine."""


class Auto(Strategy):
    """Stands for another strategy; `dtrain plan` says which one and why."""

    Options = AutoOptions
    framework = None

    def __init__(self, options: AutoOptions) -> None:
        self.options = options

    def resolve(self, job: Job) -> tuple[str, dict[str, Any], str]:
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

    def learned(self, by_rule: StrategyChoice, measured: MeasuredStrategies) -> StrategyChoice:
        """What a bench would recommend among at least two."""
        name, options, reason = by_rule
        found = measured.found
        if not self.options.measured:
            return by_rule
        if len(found) < 2:
            why = f"what was measured is outdated: {measured.outdated[0]}" if measured.outdated else ""
            why = why or ("only one strategy was measured" if found else "nothing was measured here")
            return name, options, f"{reason} (by rule; {why}: dtrain bench compares strategies)"
        taken = choice([one.measured for one in found])
        first = next((one for one in found if one.measured is taken), found[0])
        others = ", ".join(map(_shown, [one for one in found if one is not first][:2]))
        day = time.strftime("%Y-%m-%d", time.localtime(first.time))
        return (
            first.name,
            first.options,
            f"dtrain bench measured on {day}: {_shown(first)}; {others} (the rule: {name})",
        )

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
        """Set the rank alone."""
        return {"RANK": str(rank_info.rank)}


def _shown(one: MeasuredStrategy) -> str:
    options = ", ".join(f"{name}: {json.dumps(value)}" for name, value in one.options.items())
    return f"{one.name}{f' ({options})' if options else ''} {one.measured.samples_per_second:,.0f} samples/s"
