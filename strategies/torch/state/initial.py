"""Giving a model on all ranks, sharded or not, weights that rank 0 reads. Importing this module imports no framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtrain.api.weights import HINT, ReadWeights, Unmatched, Weights, compared
from dtrain.common.errors import DtrainError, UserError

from .shards import fill
from .state import ONLY, TorchState
from .tensor_files import TensorFiles, shapes
from .weights import TorchWeights, tied


def start_from(state: TorchState, group: Any, rank: int, read: ReadWeights, source: str, *, strict: bool) -> Unmatched:
    """Collective. See `StartsFromWeights.start_from`; one tensor after the other, so that only rank 0 holds all of them."""
    import torch
    import torch.distributed as dist

    targets = _tensors(state)
    weights: Weights = {}
    answer: list[Any] = [None]
    if rank == 0:
        try:
            weights = read(TorchWeights, lambda: state.models.get(ONLY, state.models))
            answer = [_compared(state, targets, weights, source, strict=strict)]
        except DtrainError as error:
            answer = [(error.message, error.hint)]
    dist.broadcast_object_list(answer, group=group)
    found, rest = answer[0]
    if not isinstance(found, Unmatched):
        raise UserError(found, rest)
    with torch.no_grad():
        for name in rest:
            _give(targets[name], weights.get(name), group)
            if isinstance(weights, TensorFiles):
                weights.leave(name)
    return found


def _tensors(state: TorchState) -> dict[str, Any]:
    """Name → the tensor itself, of all models; those of one of several begin with its name."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return {
        f"{prefix}.{name}".removeprefix("."): value
        for prefix, model in state.models.items()
        for name, value in get_model_state_dict(model).items()
        if hasattr(value, "dtype")
    }


def _compared(
    state: TorchState, targets: dict[str, Any], weights: Weights, source: str, *, strict: bool
) -> tuple[Unmatched, Sequence[str]]:
    """Return what does not fit, and the names that do. Raises `UserError` that lists the former if all must fit."""
    here = {name: tuple(value.shape) for name, value in targets.items()}
    there = shapes(weights)
    found = compared(there, here, tied(state.models.get(ONLY, state.models)))
    if strict:
        found.refuse(f"init_from: {source}", "the model", HINT)
    fitting = [name for name in here if there.get(name) == here[name]]
    if not fitting:
        found.refuse(f"init_from: not one weight of {source}", "the model", HINT)
    return found, fitting


def _give(target: Any, value: Any, group: Any) -> None:
    """Collective. Rank 0's value into the tensor of every rank, or into each rank's part of it."""
    import torch
    import torch.distributed as dist

    whole = torch.empty(target.shape, dtype=target.dtype)
    if value is not None:
        whole.copy_(value)
    dist.broadcast(whole, 0, group=group)
    fill(target, whole)
