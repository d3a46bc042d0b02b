"""Checks the answers of a task's methods, with one line that names the user's file for every wrong one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dtrain.common.errors import UserError

HIGHEST_FACTOR = 10.0
LOWEST_FACTOR = 1e-8
WEIGHT = "weight"
"""Name under which `loss` returns the weight of its loss in the mean over the global batch."""


class LossAnswer(NamedTuple):
    """What a task's `loss` returned of a batch."""

    loss: Any
    numbers: dict[str, Any]
    weight: Any = None
    """Number of what the loss is the mean of (tokens), if that is not the samples of the batch."""

    @property
    def weights(self) -> dict[str, Any]:
        """The weight of the loss by the name of the loss, as `weighted` returns those of metrics."""
        return {} if self.weight is None else {"loss": self.weight}


def gave(value: Any) -> str:
    """A wrong value in words: `None`, `a float`, `a Tensor of shape (32,)`."""
    if value is None:
        return "None"
    kind = type(value).__name__
    article = "an" if kind[0].lower() in "aeiou" else "a"
    shape = getattr(value, "shape", None)
    return f"{article} {kind}" + (f" of shape {tuple(shape)}" if shape is not None else "")


def loss_answer(result: Any, name: str) -> LossAnswer:
    """Take apart what `loss` returned: a scalar tensor, an object with `.loss`, a dict with "loss", or
    (loss, {"metric": value}), where "weight" is the weight of the loss. Raises `UserError` for anything else; `name` is the method's
    (`digits.py: Digits.loss`)."""
    metrics: dict[str, Any] = {}
    loss = result
    if isinstance(result, tuple):
        if len(result) != 2 or not isinstance(result[1], Mapping):
            raise UserError(f"{name} gave a tuple of {len(result)}; expected a loss, or (loss, {{'metric': value}})")
        loss, metrics = result[0], named_numbers(result[1], name)
    if isinstance(loss, Mapping):
        if "loss" not in loss:
            keys = ", ".join(map(repr, loss)) or "nothing"
            raise UserError(f"{name} gave a dict without 'loss' (it has {keys}); expected {{'loss': a scalar tensor}}")
        loss = loss["loss"]
    elif not hasattr(loss, "dtype") and getattr(loss, "loss", None) is not None:
        loss = loss.loss
    if loss is None:
        raise UserError(f"{name} gave None; expected a scalar tensor: is `return loss` missing?")
    if isinstance(loss, int | float):
        raise UserError(f"{name} gave {gave(loss)}; expected the tensor itself, without .item(), for its gradient")
    if not hasattr(loss, "shape") or not hasattr(loss, "dtype"):
        raise UserError(f"{name} gave {gave(loss)}; expected a scalar tensor")
    if math.prod(loss.shape) != 1:
        raise UserError(f"{name} gave {gave(loss)}; expected a scalar: take its mean")
    weight = metrics.pop(WEIGHT, None)
    if isinstance(weight, int | float) and not 0 <= weight < math.inf:
        raise UserError(f"{name} gave the weight {weight}; expected a count of what the loss is the mean of (tokens)")
    return LossAnswer(loss, metrics, weight)


def named_numbers(values: Any, name: str) -> dict[str, Any]:
    """Metrics by name; raises `UserError` for what is not a dict of numbers."""
    if not isinstance(values, Mapping):
        raise UserError(f"{name} gave {gave(values)}; expected a dict of numbers: {{'accuracy': value}}")
    for key, value in values.items():
        if not isinstance(value, int | float) and (not hasattr(value, "dtype") or math.prod(value.shape) != 1):
            raise UserError(f"{name} gave {gave(value)} for {key!r}; expected a number or a scalar tensor")
    return dict(values)


def weighted(values: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics of a batch by name, and the weights of those that are given as (value, weight); the others weigh as many as the batch has
    samples. Raises `UserError` for what is neither a number nor such a pair."""
    if not isinstance(values, Mapping):
        return named_numbers(values, name), {}
    for key, value in values.items():
        if isinstance(value, tuple) and len(value) != 2:
            raise UserError(f"{name} gave a tuple of {len(value)} for {key!r}; expected a number, or (value, weight)")
    pairs = {key: value for key, value in values.items() if isinstance(value, tuple)}
    numbers = named_numbers({key: pairs.get(key, (value, 1))[0] for key, value in values.items()}, name)
    return numbers, named_numbers({key: weight for key, (_, weight) in pairs.items()}, f"{name}: as weight,")


def factor(value: Any, name: str) -> float:
    """Convert the answer of `schedule` to a number; raises `UserError` for what is none, or not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        told = value if isinstance(value, float) else gave(value)
        raise UserError(f"{name} gave {told}; expected a finite number, the factor of the learning rate")
    return number


def doubt(value: float, name: str) -> str:
    """Why a factor is probably not meant, or ''. Zero is meant: warm-up begins with it, decay ends with it."""
    if value > HIGHEST_FACTOR or 0 < value < LOWEST_FACTOR:
        return (
            f"{name} gave {value:g}: it is a factor of the optimizer's own learning rate (1.0: unchanged), not the "
            "learning rate itself"
        )
    return ""
