"""Imported by the zygote of a PyTorch script: process groups that a script destroys are not freed under its feet.

torch 2.13 can deadlock in a script whose DDP model is local to a function: when the function returns, the last reference
to the gloo group goes with the model, and its destructor joins the group's threads with the GIL held, while one of them
waits for the GIL to free the context that the backward pass left in its work. So a destroyed group is kept until the next
one is made, or else until the process ends, which takes no objects apart.

A group that is made after another one finds the store of the first at the same port. Its names begin at another number,
so that no rank reads the address that a slower peer wrote for the group before.
"""

from __future__ import annotations

import functools
import importlib
import time
from typing import Any

SETTLE_SECONDS = 0.1
"""For the threads of kept groups to get the GIL that they wait for."""
NAMES = 1_000_000
"""Distance between the numbers that name the groups of one `init_process_group` and those of the next."""
_kept: list[Any] = []


def _keep_destroyed_groups() -> None:
    dist: Any = importlib.import_module("torch.distributed")
    distributed_c10d: Any = importlib.import_module("torch.distributed.distributed_c10d")
    world: Any = getattr(distributed_c10d, "_world", None)  # torch has no public list of its groups
    destroy, init = distributed_c10d.destroy_process_group, distributed_c10d.init_process_group
    generation = 0

    @functools.wraps(destroy)
    def destroy_process_group(*arguments: Any, **named: Any) -> Any:
        _kept.extend([*getattr(world, "pg_map", ()), dist.group.WORLD])
        return destroy(*arguments, **named)

    @functools.wraps(init)
    def init_process_group(*arguments: Any, **named: Any) -> Any:
        former = [] if dist.is_initialized() else list(_kept)
        if former and world:
            nonlocal generation
            generation += 1
            world.group_count = generation * NAMES  # torch begins again at 0
        result = init(*arguments, **named)
        if former:
            time.sleep(SETTLE_SECONDS)
            _kept.clear()
        return result

    for module in (dist, distributed_c10d):
        module.destroy_process_group, module.init_process_group = destroy_process_group, init_process_group


_keep_destroyed_groups()
