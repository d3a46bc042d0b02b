"""What the launcher's side of DDP and FSDP has in common. Importing this module imports no framework."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Device, Job, Resources

from ... import environments, errors, waiting
from ..watch import network
from . import backend


class OneADevice:
    """One process a device, told its place as torchrun tells it."""

    framework = "torch"
    knows_operations = True
    measure_network = staticmethod(network.measure)
    waits_in = staticmethod(waiting.waits_in)

    def preload(self, job: Job) -> tuple[str, ...]:
        """torch and what a first step would import."""
        return backend.PRELOAD

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """One a device."""
        return workers_per_node

    def classify(self, type_names: Sequence[str], message: str) -> FailureKind | None:
        """See `ClassifiesErrors.classify`."""
        return errors.of_torch(type_names, message)

    def splits_unevenly(self, job: Job) -> bool:
        """Losses are weighted, and every worker takes as many passes."""
        return True

    def inexact(self, job: Job) -> list[str]:
        """See `SumsExactly.inexact`."""
        return []

    def unchecked(self, job: Job) -> str:
        """See `ChecksSteps.unchecked`."""
        return ""

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """As torchrun sets it."""
        return environments.torchrun(rank_info, rendezvous)

    def problems(self, resources: Resources) -> list[str]:
        """What does not fit the device."""
        if resources.device == "tpu":
            return [
                "PyTorch strategies train on CPUs and GPUs: set resources.device to cpu or gpu, or choose the strategy tpu"
            ]
        return []
