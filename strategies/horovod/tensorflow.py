"""Horovod for TensorFlow tasks: what `DistributedGradientTape` does, summing gradients over the processes in the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dtrain.api.strategy import WorkerContext
from dtrain.api.training_backend import TrainingBackend
from dtrain.common.errors import UsageError

from ..tensorflow import backend, devices
from . import launcher


@contextmanager
def joined(context: WorkerContext, compression: str, op: str) -> Iterator[TrainingBackend]:
    """Collective. A backend whose sums over the processes are Horovod's."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    if op != "average":
        raise UsageError(f"the op {op} is for PyTorch tasks", "Set strategy.op to average.")
    (device,) = devices.prepare(context)
    hvd.init()
    launcher.say_without_nccl(hvd, context.job)
    kind = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none

    def summed(tensors: list[Any]) -> list[Any]:
        return list(hvd.grouped_allreduce(tensors, op=hvd.Sum, compression=kind))

    training = backend.TensorFlowBackend(
        context.rank_info, tf.distribute.OneDeviceStrategy(device), summed=summed, timed=True
    )
    yield training
    # A worker that leaves while others still compute looks like one that failed.
    training.mean({})
    hvd.shutdown()
