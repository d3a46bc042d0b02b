"""Horovod for TensorFlow tasks: what `DistributedGradientTape` does, summing gradients over the processes in the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dtrain.api.strategy import TrainingBackend, WorkerContext
from dtrain.common.errors import UsageError

from ..tensorflow import backend


@contextmanager
def joined(joining: WorkerContext, compression: str, op: str) -> Iterator[TrainingBackend]:
    """Collective. A session whose sums over the processes are Horovod's."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    if op != "average":
        raise UsageError(f"the op {op} is for PyTorch tasks", "Set strategy.op to average.")
    (device,) = backend.prepare(joining)
    hvd.init()
    kind = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none

    def summed(tensors: list[Any]) -> list[Any]:
        return list(hvd.grouped_allreduce(tensors, op=hvd.Sum, compression=kind))

    session = backend.TensorFlowBackend(joining.place, tf.distribute.OneDeviceStrategy(device), summed=summed)
    yield session
    # A worker that leaves while others still compute looks like one that failed.
    session.mean({})
    hvd.shutdown()
