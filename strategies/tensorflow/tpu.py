"""TensorFlow TPUStrategy: one process drives all cores of a TPU; a rehearsal compiles the same step on a CPU."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt

from dtrain.api.strategy import WorkerContext
from dtrain.api.training_backend import TrainingBackend
from dtrain.common.errors import DtrainError
from dtrain.job.job import Resources

from .launcher import OneANode

CONNECT_SECONDS = 30.0


class TPUMissing(DtrainError):
    """A TPU was asked for, and there is none."""


@dataclass(frozen=True)
class TPUOptions:
    """Of TPUStrategy."""

    tpu: str | None = None
    """Name of the TPU, or its gRPC address; what the environment names when not given."""
    zone: str | None = None
    """Google Cloud's zone of the TPU."""
    project: str | None = None
    """Google Cloud's project of the TPU."""
    local: bool = False
    """The TPU is attached to the node itself (a TPU VM)."""
    rehearse: bool = False
    """Compile the same steps with XLA for one CPU replica, without a TPU: shows that the model compiles and that its
    shapes are static."""
    steps_per_call: Annotated[int, Gt(0)] = 1
    """Steps in one call of the compiled program. Whatever looks at the state (a report, an evaluation, a checkpoint)
    ends a call early: give these intervals as multiples of it."""


class TPU(OneANode):
    """One process a TPU; a worker is one of its cores."""

    Options = TPUOptions

    def __init__(self, options: TPUOptions) -> None:
        self.options = options

    def problems(self, resources: Resources) -> list[str]:
        """More than one node, another device, and options that exclude each other."""
        found = []
        if resources.nodes > 1:
            found.append(f"one process drives a whole TPU: --nodes 1, not {resources.nodes}")
        if resources.device != "tpu" and not self.options.rehearse:
            found.append("tpu trains on TPUs: set resources.device to tpu, or rehearse: true to try the model on a CPU")
        if resources.device == "gpu" and self.options.rehearse:
            found.append("a rehearsal compiles for a CPU: set resources.device to cpu or tpu")
        if self.options.local and self.options.tpu:
            found.append("a local TPU has no name: give tpu or local, not both")
        return found

    @contextmanager
    def join(self, context: WorkerContext) -> Iterator[TrainingBackend]:
        """Connect to the TPU and start its system, or take one CPU; raises `TPUMissing`."""
        from . import compiled, devices

        steps = self.options.steps_per_call
        if self.options.rehearse:
            yield compiled.rehearsal(context, steps)
        else:
            strategy = devices.checked(self._strategy(), context.rank_info)
            yield compiled.CompiledBackend(context.rank_info, strategy, steps_per_call=steps)

    def _strategy(self) -> Any:
        import tensorflow as tf

        options = self.options
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
                tpu="local" if options.local else options.tpu, zone=options.zone, project=options.project
            )
            _reach(resolver)
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver)
        except (tf.errors.OpError, ValueError, ImportError, OSError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__).partition(" used by ")[0]
            # Without TensorFlow's own pages about it.
            raise TPUMissing(
                f"{self._sought()} was not found: {reason[:300]}",
                "Name one (tpu, zone, project), set local: true on a TPU VM, or try the model here with rehearse: true.",
            ) from None

    def _sought(self) -> str:
        options = self.options
        if options.local:
            return "a TPU attached to this node"
        where = "".join(
            f", {key} {value}" for key, value in (("zone", options.zone), ("project", options.project)) if value
        )
        return f"the TPU {options.tpu}{where}" if options.tpu else f"a TPU that the environment names{where}"


def _reach(resolver: Any) -> None:
    """Raise `OSError` if no TPU worker listens: TensorFlow would wait for it for ever."""
    spec = resolver.cluster_spec()
    for addresses in spec.as_dict().values() if spec else ():
        for address in addresses:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
