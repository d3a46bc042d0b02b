"""Giving a model on all ranks, sharded or not, weights that rank 0 finds. Importing this module imports no framework."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtrain.api.weights import HINT, ReadWeights, Unmatched, Weights, compared
from dtrain.common.errors import DtrainError, UserError

from .shards import fill, part_of
from .state import ONLY, TorchState
from .tensor_files import TensorFiles, shapes
from .weights import TorchWeights, tied


def start_from(state: TorchState, group: Any, rank: int, read: ReadWeights, source: str, *, strict: bool) -> Unmatched:
    """Collective. See `StartsFromWeights.start_from`. Of a sharded tensor each rank reads its own rows, if all of them see the files that
    rank 0 has found; the others go from rank 0 to all, one after the other."""
    import torch
    import torch.distributed as dist

    targets = _tensors(state)
    weights: Weights = {}
    answer: list[Any] = [None]
    if rank == 0:
        try:
            weights = read(TorchWeights, lambda: state.models.get(ONLY, state.models))
            found, rest = _compared(state, targets, weights, source, strict=strict)
            files = _files(weights, [name for name in rest if part_of(targets[name])])
            answer = [(found, rest, files, files.states())]
        except DtrainError as error:
            answer = [(error.message, error.hint, TensorFiles({}), {})]
    dist.broadcast_object_list(answer, group=group)
    found, rest, files, states = answer[0]
    if not isinstance(found, Unmatched):
        raise UserError(found, rest)
    seen = _by_all(files, states, group)
    with torch.no_grad():
        for name in rest:
            part = part_of(targets[name])
            if seen and part and name in files:
                files.read_part(name, *part)
                continue
            _give(targets[name], weights.get(name), group)
            if isinstance(weights, TensorFiles):
                weights.leave(name)
    return found


def _files(weights: Weights, names: Collection[str]) -> TensorFiles:
    """The places in files of weights, as far as they lie in files."""
    return weights.in_files(names) if isinstance(weights, TensorFiles) else TensorFiles({})


def _by_all(files: TensorFiles, states: Mapping[Path, Any], group: Any) -> bool:
    """Collective. Whether every rank sees the same files at the same paths: another node may have none or others there."""
    import torch
    import torch.distributed as dist

    if not states:
        return False
    try:
        same = files.states() == states
    except OSError:
        same = False
    seen = torch.tensor(same, dtype=torch.uint8)
    dist.all_reduce(seen, dist.ReduceOp.MIN, group=group)
    return bool(seen)


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
