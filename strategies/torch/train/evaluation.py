"""Evaluation of models under PyTorch: means over held-out samples, their outputs, and a loss on copies of everything.

Importing this module imports no framework.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dtrain.api.strategy import RankInfo
from dtrain.api.training_backend import LossApart
from dtrain.common.errors import UserError
from dtrain.job.task_answers import gave, loss_answer, weighted

from .batches import evaluating

MOST_COPIED = 1 << 30
"""Bytes of models up to which a copy is made for a look at the loss."""
Measured = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Values of a batch by name, and the weights of those that have one."""


def sums(
    batches: Iterable[tuple[Any, int]], measure: Callable[[Any], Measured]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the means over all batches by name, and their weights: the number of samples where the measure names none."""
    import torch

    totals: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for batch, count in batches:
        values, given = measure(batch)
        for name, one in values.items():
            value = torch.as_tensor(one, dtype=torch.float64).reshape(())
            weight = torch.as_tensor(given.get(name, count) if count else 0).to(value).reshape(())
            totals[name] = totals.get(name, 0.0) + torch.where(weight > 0, value * weight, 0.0)
            weights[name] = weights.get(name, 0.0) + weight
    found = {name: float(weight) for name, weight in weights.items()}
    return {name: float(total) / (found[name] or 1.0) for name, total in totals.items()}, found


def measure_of(task: Any, name: str, metrics: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Measured]:
    """Return what measures a batch: these metrics, the task's or, if it has none, its loss."""
    if metrics is not None:
        return lambda models, batch: weighted(metrics(models, batch), f"{name}: the metrics of context.evaluate")
    if hasattr(task, "metrics"):
        return lambda models, batch: weighted(task.metrics(models, batch), f"{name}.metrics")
    if not hasattr(task, "loss"):
        raise UserError(f"{name} has held-out data and neither metrics nor loss to evaluate it with")

    def measured(models: Any, batch: Any) -> Measured:
        answer = loss_answer(task.loss(models, batch), f"{name}.loss")
        return {"loss": answer.loss.reshape(())} | answer.numbers, answer.weights

    return measured


def outputs(
    batches: Iterable[tuple[Any, int]], call: Callable[[Any], Any], rank_info: RankInfo, name: str
) -> tuple[Any, ...] | None:
    """Collective. Gather what was returned of all samples as tensors on the host of rank 0; batches are dealt out to the ranks in turn."""
    import torch
    import torch.distributed as dist

    own = [_rows(call(batch), count, name) for batch, count in batches]
    everyones = [own]
    if rank_info.world_size > 1:
        everyones = [own] * rank_info.world_size
        dist.gather_object(own, everyones if rank_info.rank == 0 else None)
    if rank_info.rank:
        return None
    columns = zip(*(part for turn in zip(*everyones, strict=True) for part in turn), strict=True)
    try:
        return tuple(map(torch.cat, columns))
    except RuntimeError as error:
        raise UserError(f"{name}: its arrays cannot be joined along the samples: {error}") from None


def _rows(values: Any, count: int, name: str) -> tuple[Any, ...]:
    import torch

    found = []
    for value in values if isinstance(values, tuple | list) else (values,):
        if not hasattr(value, "dtype") or not len(value.shape) or len(value) < count:
            raise UserError(f"{name} gave {gave(value)}; expected arrays with the samples along the first axis")
        found.append(torch.as_tensor(value)[:count].detach().cpu())
    return tuple(found)


def loss_apart(task: Any, models: Mapping[str, Any], view: Callable[[Any], Any], batch: Any, name: str) -> LossApart:
    """Compute the loss of a batch on copies of the task and its models, whatever its `loss` does to them; None if there can be none."""
    import torch

    tensors = [tensor for model in models.values() for tensor in (*model.parameters(), *model.buffers())]
    if sum(tensor.nbytes for tensor in tensors) > MOST_COPIED:
        return None
    memo: dict[int, Any] = {}
    models = copy.deepcopy(dict(models), memo)
    task = task.copied(memo)
    with evaluating(models.values()), torch.no_grad():
        answer = loss_answer(task.loss(view(models), batch), f"{name}.loss")
    if answer.loss.dtype not in (torch.float32, torch.float64):
        return None
    return float(answer.loss), None if answer.weight is None else float(answer.weight)
