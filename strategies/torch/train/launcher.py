"""The launcher's side of DDP and FSDP. Importing this module imports no framework."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.api.strategy import RankInfo, RendezvousInfo, TrainingStrategy
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Device, Job, Resources

from ... import environments, errors, flight_recorder, waiting
from ..watch import network
from . import backend


def scaling(precision: str) -> str:
    """Name the option that has the loss scaled; '' for a precision that needs none."""
    return "precision: fp16" if precision == "fp16" else ""


class OneADevice(TrainingStrategy):
    """A strategy with one process a device, which finds its place as under torchrun."""

    framework = "torch"
    knows_operations = True
    measure_network = staticmethod(network.measure)
    waits_in = staticmethod(waiting.waits_in)
    explain_hang = staticmethod(flight_recorder.explain)

    def preload(self, job: Job) -> tuple[str, ...]:
        """torch and what a first step would import."""
        return backend.PRELOAD

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """Return one process a device."""
        return workers_per_node

    def classify(self, type_names: Sequence[str], message: str) -> FailureKind | None:
        return errors.of_torch(type_names, message)

    def splits_unevenly(self, job: Job) -> bool:
        """Losses are weighted, and every worker takes as many passes."""
        return True

    def inexact(self, job: Job) -> list[str]:
        return []

    def unchecked(self, job: Job) -> str:
        return ""

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """Return torchrun's variables, without the one that it sets for older programs: an abort of NCCL's communicators may hang."""
        found = environments.torchrun(rank_info, rendezvous) | environments.lazy_gloo(rank_info)
        return {name: value for name, value in found.items() if name != "TORCH_NCCL_ASYNC_ERROR_HANDLING"}

    def gpu_environment(self) -> dict[str, str]:
        """Return what has NCCL's process groups record their collectives."""
        return flight_recorder.environment()

    def problems(self, resources: Resources) -> list[str]:
        """Yield what does not fit the device."""
        if resources.device == "tpu":
            return [
                "PyTorch strategies train on CPUs and GPUs: set resources.device to cpu or gpu, or choose the strategy tpu"
            ]
        return []
