"""TensorFlow MirroredStrategy: one process drives all devices of a node, and each of them holds the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from dtrain.api.strategy import WorkerContext
from dtrain.api.training_backend import TrainingBackend
from dtrain.job.job import Resources

from . import backend, devices
from .launcher import OneANode


@dataclass(frozen=True)
class MirroredOptions:
    """Of MirroredStrategy."""

    reduction: Literal["auto", "nccl", "hierarchical_copy", "reduction_to_one_device"] = "auto"
    """How gradients are summed over the devices (`tf.distribute.CrossDeviceOps`)."""
    precision: devices.Precision = "fp32"
    """mixed_bfloat16: layers compute in bfloat16 and keep their weights in float32 (Keras's dtype policy)."""
    run_eagerly: bool = False
    """Steps run line by line as Python instead of as a graph, for a debugger; many times slower."""


class Mirrored(OneANode):
    """One process a node; on CPUs its devices are logical ones, as many as there are workers."""

    Options = MirroredOptions

    def __init__(self, options: MirroredOptions) -> None:
        self.options = options

    def problems(self, resources: Resources) -> list[str]:
        """More than one node, and what does not fit the device."""
        found = []
        if resources.nodes > 1:
            found.append(
                f"mirrored trains on one node, not {resources.nodes}: choose multi_worker_mirrored, or --nodes 1"
            )
        if resources.device == "tpu":
            found.append("mirrored trains on CPUs and GPUs: choose the strategy tpu")
        if resources.device == "cpu" and self.options.reduction == "nccl":
            found.append("the reduction nccl needs GPUs: choose auto")
        return found

    @contextmanager
    def join(self, context: WorkerContext) -> Iterator[TrainingBackend]:
        """Nobody to connect to: take the devices."""
        import tensorflow as tf

        names = devices.prepare(context, eagerly=self.options.run_eagerly, precision=self.options.precision)
        strategy = tf.distribute.MirroredStrategy(names, cross_device_ops=self._reduction())
        yield backend.TensorFlowBackend(context.rank_info, strategy)

    def _reduction(self) -> Any:
        import tensorflow as tf

        kinds = {
            "nccl": tf.distribute.NcclAllReduce,
            "hierarchical_copy": tf.distribute.HierarchicalCopyAllReduce,
            "reduction_to_one_device": tf.distribute.ReductionToOneDevice,
        }
        return kinds[self.options.reduction]() if self.options.reduction in kinds else None
