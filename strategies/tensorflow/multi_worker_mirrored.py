"""TensorFlow MultiWorkerMirroredStrategy: every worker holds the whole model, gradients are summed over the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from dtrain.api.strategy import RankInfo, RendezvousInfo, WorkerContext
from dtrain.api.training_backend import TrainingBackend
from dtrain.job.job import Device, Resources

from .. import environments
from . import backend, devices
from .launcher import TensorFlowStrategy

END_MILLISECONDS = 30_000


@dataclass(frozen=True)
class MultiWorkerMirroredOptions:
    """Of MultiWorkerMirroredStrategy."""

    communication: Literal["auto", "ring", "nccl"] = "auto"
    """How gradients are summed: ring over gRPC, NCCL between GPUs, or what TensorFlow takes to be best."""
    precision: devices.Precision = "fp32"
    """mixed_bfloat16: layers compute in bfloat16 and keep their weights in float32 (Keras's dtype policy)."""
    run_eagerly: bool = False
    """Steps run line by line as Python instead of as a graph, for a debugger; many times slower."""


class MultiWorkerMirrored(TensorFlowStrategy):
    """On CPUs one process a worker, since TensorFlow gives such a process one replica; on GPUs one a node, which drives
    all its devices."""

    Options = MultiWorkerMirroredOptions

    def __init__(self, options: MultiWorkerMirroredOptions) -> None:
        self.options = options

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """Return one process a worker, or one if they are GPUs."""
        return 1 if device == "gpu" else workers_per_node

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """TF_CONFIG, the addresses of all workers and which of them this one is."""
        return environments.tf_config(rank_info, rendezvous)

    def needs_all_addresses(self, processes: int) -> bool:
        """Whether TF_CONFIG, which names all workers, is set."""
        return True

    def problems(self, resources: Resources) -> list[str]:
        """Yield what does not fit the device."""
        found = []
        if resources.device == "tpu":
            found.append("multi_worker_mirrored trains on CPUs and GPUs: choose the strategy tpu")
        if resources.device == "cpu" and self.options.communication == "nccl":
            found.append("the communication nccl needs GPUs: choose ring")
        return found

    @contextmanager
    def join(self, context: WorkerContext) -> Iterator[TrainingBackend]:
        """Start this worker's server on its reserved port, and wait for the others'."""
        import tensorflow as tf

        devices.prepare(context, eagerly=self.options.run_eagerly, precision=self.options.precision)
        kind = tf.distribute.experimental.CommunicationImplementation[self.options.communication.upper()]
        options = tf.distribute.experimental.CommunicationOptions(implementation=kind)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        training = backend.TensorFlowBackend(
            context.rank_info, devices.checked(strategy, context.rank_info), timed=not self.options.run_eagerly
        )
        yield training
        # A worker that leaves while others still compute looks like one that failed.
        training.mean({})
        _wait_for_all()


def _wait_for_all() -> None:
    """A worker is done with a collective when its last message is on its way: nobody ends before all others have theirs, too."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    with suppress(tf.errors.OpError):  # rank 0 serves the barrier, and may have left when its answer arrives
        context.context().wait_at_barrier("dtrain-end", END_MILLISECONDS)
