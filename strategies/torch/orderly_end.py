"""Imported by the zygote of a PyTorch script: process groups that a script destroys are not freed under its feet.

torch 2.13 can deadlock in a script whose DDP model is local to a function: when the function returns, the last reference
to the gloo group goes with the model, and its destructor joins the group's threads with the GIL held, while one of them
waits for the GIL to free the context that the backward pass left in its work. So a destroyed group is kept until the next
one is made, or else until the process ends, which takes no objects apart.
"""

from __future__ import annotations

import functools
import importlib
import time
from typing import Any

SETTLE_SECONDS = 0.1
"""For the threads of kept groups to get the GIL that they wait for."""
_kept: list[Any] = []


def _keep_destroyed_groups() -> None:
    dist: Any = importlib.import_module("torch.distributed")
    distributed_c10d: Any = importlib.import_module("torch.distributed.distributed_c10d")
    destroy, init = distributed_c10d.destroy_process_group, distributed_c10d.init_process_group

    @functools.wraps(destroy)
    def destroy_process_group(*arguments: Any, **named: Any) -> Any:
        # torch has no public list of its groups.
        _kept.extend([*getattr(getattr(distributed_c10d, "_world", None), "pg_map", ()), dist.group.WORLD])
        return destroy(*arguments, **named)

    @functools.wraps(init)
    def init_process_group(*arguments: Any, **named: Any) -> Any:
        if _kept and not dist.is_initialized():
            time.sleep(SETTLE_SECONDS)
            _kept.clear()  # with their store, whose port and keys are the next one's
        return init(*arguments, **named)

    for module in (dist, distributed_c10d):
        module.destroy_process_group, module.init_process_group = destroy_process_group, init_process_group


_keep_destroyed_groups()
