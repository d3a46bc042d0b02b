"""Abilities that a strategy and its training backend need to check loss and gradient of all ranks before the
optimizer steps (`train.on_nonfinite`, `train.spike`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dtrain.job.job import Job, Train


@dataclass(frozen=True)
class StepSeen:
    """Loss and gradient of a step whose optimizer has not stepped yet; the same on every rank."""

    losses: tuple[float, ...]
    """Losses of all shards of all ranks, in the order of shards."""
    norm: float
    """Of the gradient, averaged over the ranks, before it is clipped."""


Judge = Callable[[StepSeen], bool]
"""Whether the optimizer may step; may raise what ends the attempt."""


def asked_for(train: Train) -> bool:
    """Whether the recipe asks for a look at loss and gradient of all ranks before every optimizer step."""
    return train.on_nonfinite in ("skip", "rollback") or train.spike is not None


@runtime_checkable
class ChecksSteps(Protocol):
    """A strategy whose backend is a `JudgesSteps`."""

    def unchecked(self, job: Job) -> str:
        """Pure. What keeps its backend from looking at the steps of this job before the optimizer steps; '' if nothing does."""


@runtime_checkable
class JudgesSteps(Protocol):
    """A training backend that asks before its optimizer steps."""

    judge: Judge | None
    """Set before the first step: asked in every `step`, on all ranks with the same numbers. After a False the model is as it was
    before the step."""

    def leave_out(self) -> None:
        """A step passes without its batch; schedulers of the user's own go on."""


@runtime_checkable
class FindsNonFinite(Protocol):
    """A training backend that can tell where the first value that is not finite comes from."""

    def origin(self, batch: Any, seed: int, *, gradient: bool) -> str | None:
        """Compute a shard of this rank once more, with the weights as they are: the batch, the module or the loss that has the
        first value that is not finite or, with `gradient`, the first parameter whose gradient has one; '' if it has none, None if
        that cannot be told. Not collective; changes buffers of the model."""
