"""The memory that a rank needs for a task's model, gradients and optimizer, found without that memory. Importing this module imports no
framework."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dtrain.api.rank_memory import RankMemory
from dtrain.job.job import Job

from ..state.state import ONLY
from .deferred import Deferred
from .models import made
from .optimizers import sorted_out
from .recording import recorded


def estimated(
    task: Any, job: Job, sharing: int, largest: Callable[[Any], int] | None = None, gathered: int = 0
) -> RankMemory:
    """The memory of a rank if so many share a model; `largest` tells the bytes of the largest part of a model that is gathered at a time, and
    `gathered` how many are. Raises what the user's code raises, and `Undeferrable`."""
    import torch

    torch.manual_seed(job.train.seed)
    several = hasattr(task, "models")
    models = Deferred(*recorded(partial(made, task, task.name, several=several))).models
    parameters = {id(one): one for model in models.values() for one in model.parameters()}.values()
    gradients = [one for one in parameters if one.requires_grad]
    return RankMemory(
        _share(sum(one.nbytes for one in parameters), sharing),
        _share(sum(one.nbytes for one in gradients), sharing),
        _of_optimizer(task, models, gradients, sharing),
        max(map(largest, models.values())) if largest else 0,
        gathered,
    )


def _share(size: int, sharing: int) -> int:
    return -(-size // sharing)


def _of_optimizer(task: Any, models: dict[str, Any], trained: list[Any], sharing: int) -> int | None:
    """The state of the optimizers after a step, or None if they take none without values."""
    import torch
    from torch.utils._pytree import tree_leaves

    make = task.optimizers if hasattr(task, "optimizers") else task.optimizer
    optimizers, _ = sorted_out(make(models.get(ONLY, models)), task.name)
    for one in trained:
        one.grad = torch.empty_like(one)
    try:
        for optimizer in optimizers.values():
            optimizer.step()
    except Exception:  # noqa: BLE001  of any optimizer
        return None
    states = [tree_leaves(optimizer.state) for optimizer in optimizers.values()]
    return _share(sum(one.nbytes for leaves in states for one in leaves if isinstance(one, torch.Tensor)), sharing)
