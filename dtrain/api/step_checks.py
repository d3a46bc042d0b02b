"""Abilities that a strategy and its training backend need to check loss and gradient of all ranks before the
optimizer steps (`train.on_nonfinite`, `train.spike`)."""

from __future__ import annotations

from collections.abc import Callable

from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.job import Train


@dataclass(frozen=True)
class StepSeen:
    """Loss and gradient of a step whose optimizer has not stepped yet; the same on every rank."""

    losses: tuple[float, ...]
    """Losses of all shards of all ranks, in the order of shards."""
    norm: float
    """Of the gradient, averaged over the ranks, before it is clipped."""
    scale: float = 1.0
    """What the loss was multiplied with, if a gradient is not finite and the loss is scaled (fp16)."""


Judge = Callable[[StepSeen], bool]
"""Whether the optimizer may step; may raise what ends the attempt."""


def asked_for(train: Train) -> bool:
    """Whether the recipe asks for a look at loss and gradient of all ranks before every optimizer step."""
    return train.on_nonfinite in ("skip", "rollback") or train.spike is not None
