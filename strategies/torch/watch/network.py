"""How well nodes reach each other, by gloo, and for how long collectives wait. Importing this module imports no framework."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from dtrain.api.strategy import NetworkMeasured

PAYLOAD_BYTES = 16 << 20
ROUNDS = 3
SUSPENDED = timedelta(days=30)
"""For collectives that wait for a person."""


def measure(rank: int, leaders: Sequence[int], world_size: int) -> NetworkMeasured:
    """Pairs of neighbours one after the other, so that they do not share the network."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    clocks: list[Any] = [torch.zeros(1, dtype=torch.float64) for _ in range(world_size)]
    dist.all_gather(clocks, torch.tensor([time.time()], dtype=torch.float64))
    times = [clock.item() for clock in clocks]
    speeds: dict[int, float] = {}
    around = [*leaders, leaders[0]] if len(leaders) > 2 else leaders
    for pair in itertools.pairwise(around):
        group = dist.new_group(list(pair), backend="gloo")
        if rank in pair:
            speed = _bytes_per_second(group)
            if rank == pair[0]:
                speeds[pair[1]] = speed
    dist.barrier()
    dist.destroy_process_group()
    return NetworkMeasured(max(times) - min(times), PAYLOAD_BYTES, speeds)


def suspend_timeouts() -> None:
    """Raise the timeouts of all process groups of this worker."""
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(SUSPENDED, group)


def _bytes_per_second(group: Any) -> float:
    import torch
    import torch.distributed as dist

    payload = torch.zeros(PAYLOAD_BYTES, dtype=torch.uint8)
    dist.all_reduce(payload, group=group)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(payload, group=group)
    return ROUNDS * PAYLOAD_BYTES / (time.perf_counter() - began)
