"""The forms of a task's `optimizer` under PyTorch: one, several by name or in a list, each with a scheduler or
without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dtrain.common.errors import UserError
from dtrain.job.task_answers import gave

from ..state import optimizer_state
from ..state.state import ONLY

Sorted = tuple[dict[str, Any], dict[str, Any]]
"""Optimizers and schedulers by name."""
EXPECTED = "an optimizer, several in a list or dict, or (optimizer, scheduler)"


def sorted_out(given: Any, name: str) -> Sorted:
    """Optimizers and schedulers by name in what the method `name` gave; raises `UserError` for anything else."""
    import torch

    if isinstance(given, torch.optim.Optimizer):
        return {ONLY: given}, {}
    if _is_pair(given):
        return _pair(given, ONLY, name)
    if isinstance(given, Mapping):
        named = dict(given)
    elif isinstance(given, tuple | list) and given:
        if len(given) == 2 and all(isinstance(part, list | tuple) and part for part in given):
            given = list(zip(*given, strict=True)) if len(given[0]) == len(given[1]) else given
        named = {str(number): part for number, part in enumerate(given)}
    else:
        raise UserError(f"{name} gave {gave(given)}; expected {EXPECTED}")
    optimizers: dict[str, Any] = {}
    schedulers: dict[str, Any] = {}
    for key, part in named.items():
        if isinstance(part, torch.optim.Optimizer):
            optimizers[key] = part
        elif _is_pair(part):
            own, own_scheduler = _pair(part, key, name)
            optimizers |= own
            schedulers |= own_scheduler
        else:
            raise UserError(f"{name} gave {gave(part)} for {key!r}; expected {EXPECTED}")
    return optimizers, schedulers


def _is_pair(given: Any) -> bool:
    import torch

    return (
        isinstance(given, tuple)
        and len(given) == 2
        and isinstance(given[0], torch.optim.Optimizer)
        and not isinstance(given[1], torch.optim.Optimizer)
    )


def _pair(given: Any, key: str, name: str) -> Sorted:
    import torch

    optimizer, scheduler = given
    if scheduler is None:
        return {key: optimizer}, {}
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise UserError(
            f"{name} gave a ReduceLROnPlateau, which needs a loss to step on: use it in a function: of your own"
        )
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        raise UserError(f"{name} gave {gave(scheduler)} beside the optimizer; expected a torch.optim.lr_scheduler")
    return {key: optimizer}, {key: scheduler}


def check_trained(optimizers: Mapping[str, Any], named: list[tuple[str, Any]], method: str) -> None:
    """Raise `UserError` for an optimizer with parameters that no model has: a checkpoint could not name them."""
    known = {id(parameter) for _, parameter in named}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in known:
                    raise UserError(
                        f"{method} gave an optimizer of a parameter of shape {tuple(parameter.shape)} that is in no model: "
                        "make it from the model that the method is given, whose parameters may be other objects than before"
                    )


def trained(optimizers: Mapping[str, Any]) -> list[Any]:
    """Return the parameters that optimizers train, each once: a model may have others, whose gradients are nobody's."""
    every = (one for optimizer in optimizers.values() for group in optimizer.param_groups for one in group["params"])
    return list({id(one): one for one in every}.values())


def forget_gradients(optimizers: Iterable[Any], used: Iterable[Any], parameters: Iterable[Any]) -> None:
    """Begin the gradients of the next step: of the parameters that `optimizers` train, `used`, and of the others, which would only add up."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    known = set(map(id, used))
    for parameter in parameters:
        if id(parameter) not in known:
            parameter.grad = None


def refuse_closures(optimizers: Mapping[str, Any], method: str, *, own: bool, possible: bool) -> None:
    """Raise `UserError` for an optimizer that computes the loss itself, as often as it likes: dtrain's own step does it once, and some
    strategies average the gradients of one pass a step."""
    if own and possible:
        return
    for optimizer in optimizers.values():
        if optimizer_state.needs_closure(optimizer):
            what = f"{method} gave {gave(optimizer)}, whose step(closure) computes the loss several times"
            if not possible:
                raise UserError(f"{what}, which this strategy cannot average: take strategy: ddp, or another optimizer")
            raise UserError(
                f"{what}: give the task a method train_step(step) that calls step.optimizer.step(closure), in place of loss"
            )
