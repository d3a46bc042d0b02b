"""PyTorch DistributedDataParallel: a whole model on every worker, gradients averaged while they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dtrain.job import Job
from dtrain.strategy import Joining, Peers, Place, Session

from . import _environments, _torch


@dataclass(frozen=True)
class DDPOptions:
    """Of DDP."""

    bucket_mb: float = 25.0
    """Megabytes of gradients that are averaged in one go."""
    static_graph: bool = False
    """The same parameters take part in every step, in the same order."""


class DDP:
    """One process a device, gloo on CPUs and NCCL on GPUs."""

    Options = DDPOptions
    framework = "torch"

    def __init__(self, options: DDPOptions) -> None:
        self.options = options

    def preload(self, job: Job) -> tuple[str, ...]:
        """torch and what a first step would import."""
        return _torch.PRELOAD

    def processes(self, workers_per_node: int) -> int:
        """One a device."""
        return workers_per_node

    def environment(self, place: Place, peers: Peers) -> dict[str, str]:
        """As torchrun sets it."""
        return _environments.torchrun(place, peers)

    @contextmanager
    def join(self, joining: Joining) -> Iterator[Session]:
        """Connect over a store whose port was reserved for this attempt."""
        with _torch.connected(joining) as device:
            yield _torch.TorchSession(joining.place, device, self._wrap)

    def _wrap(self, model: Any, device: Any) -> Any:
        import inspect

        from torch.nn.parallel import DistributedDataParallel

        known = inspect.signature(DistributedDataParallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            bucket_cap_mb=self.options.bucket_mb,
            static_graph=self.options.static_graph,
            gradient_as_bucket_view=True,
            **{buffers: False},  # the session shares them once a step
        )
