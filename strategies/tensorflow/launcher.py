"""The launcher's side of the TensorFlow strategies. Importing this module imports no framework."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.api.strategy import RankInfo, RendezvousInfo, TrainingStrategy
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Device, Job

from .. import errors, waiting
from . import backend
from .numbers import peak_device_memory


class TensorFlowStrategy(TrainingStrategy):
    """A strategy of TensorFlow, as the launcher sees it."""

    framework = "tensorflow"
    waits_in = staticmethod(waiting.waits_in)

    def preload(self, job: Job) -> tuple[str, ...]:
        """TensorFlow and what a first step would import."""
        return backend.PRELOAD

    def peak_device_memory(self) -> int:
        return peak_device_memory()

    def classify(self, type_names: Sequence[str], message: str) -> FailureKind | None:
        return errors.of_tensorflow(type_names, message)


class OneANode(TensorFlowStrategy):
    """A strategy in which one process drives all devices of a node."""

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """Return one process, whatever the number of devices."""
        return 1

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """Nothing: there are no peers."""
        return {}
