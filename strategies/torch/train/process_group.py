"""Connecting the workers of a PyTorch strategy. Importing this module imports no framework."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from dtrain.api.strategy import WorkerContext
from dtrain.job.job import Job

from ..exact import tree_sums

CONNECT_SECONDS = 300
LEAST_TIMEOUT_SECONDS = 1800.0
"""Least timeout of the process group's collectives."""
HANGS = 3.0
"""Times `recovery.hang_seconds`: later than dtrain's own look at the ranks."""


@contextmanager
def connected(context: WorkerContext, *, eager: bool | None = False) -> Iterator[Any]:
    """Collective. The default process group over the reserved port; yields this worker's device. `eager`: see `bound_device`."""
    import torch
    import torch.distributed as dist

    rank_info, rendezvous, listener = context.rank_info, context.rendezvous, context.listener
    on_gpu = context.job.resources.device == "gpu"
    device = torch.device("cuda", rank_info.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if listener is not None:
        listener.listen(1024)
    store = dist.TCPStore(
        rendezvous.addresses[0],
        rendezvous.ports[0],
        rank_info.world_size,
        is_master=listener is not None,
        timeout=timedelta(seconds=CONNECT_SECONDS),
        wait_for_workers=False,
        # The store closes what it is given when it ends: let it have a copy.
        master_listen_fd=listener.dup().detach() if listener is not None else None,
    )
    dist.init_process_group(
        # Tensors on CPUs are reduced, too: gradients that are offloaded, objects, the planning of checkpoints.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank_info.rank, world_size=rank_info.world_size,
        # A hang is for dtrain to find: its report names the rank and has the stacks.
        timeout=timedelta(seconds=max(LEAST_TIMEOUT_SECONDS, HANGS * context.job.recovery.hang_seconds)),
        device_id=bound_device(device, context.job, eager=eager),
    )  # fmt: skip
    if context.job.train.matmul:
        torch.set_float32_matmul_precision(context.job.train.matmul)
    if context.job.train.exact:
        tree_sums.settings(device, context.job.resources.cpus_per_worker or 1)
    yield device
    # Only if all went well: after an error the peers may be gone, and this process is about to end anyway.
    dist.destroy_process_group()


def bound_device(device: Any, job: Job, *, eager: bool | None) -> Any | None:
    """Return the device to bind the process group to, so that NCCL connects at once; None: at the first collective. By default (None) tasks do:
    if a function made a gloo group of some ranks, the others would wait in NCCL for them."""
    wanted = job.kind == "task" if eager is None else eager
    # The wrapper that checks every collective makes groups of its own.
    checked = os.environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL"
    return device if wanted and device.type == "cuda" and not checked else None


def totals(device: Any, numbers: Sequence[float]) -> list[float]:
    """Collective. Sum numbers over the ranks, as many on each."""
    import torch
    import torch.distributed as dist

    summed = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    found: list[float] = summed.tolist()
    return found


def everyones(value: Any, group: Any = None) -> list[Any]:
    """Collective. Gather a value of each rank."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=group)
    return found
