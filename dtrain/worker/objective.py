"""Whether the loss of a task is one objective, however a global batch is divided among workers and passes."""

from __future__ import annotations

import math

import numpy as np

from dtrain.api.training_backend import LossApart, TrainingBackend
from dtrain.data.batches import Batches
from dtrain.job.job import Train

SAMPLES = 32
"""Most samples whose loss is compared with those of their halves."""
TOLERANCE = 3e-4
"""Relative difference between them that is more than rounding."""


def doubt(backend: TrainingBackend, data: Batches, train: Train, name: str) -> str:
    """Say why `loss` is no mean over samples or over what its weight counts, or ''. It is computed of some samples and of their halves, on
    copies of everything; a loss that is drawn (noise, augmentation) is not judged. An error shows in the first step, if it is one."""
    try:
        return _doubt(backend, data, train, name)
    except Exception:  # noqa: BLE001  a copy may lack what the original has
        return ""


def _doubt(backend: TrainingBackend, data: Batches, train: Train, name: str) -> str:
    half = min(SAMPLES, data.size, train.global_batch) // 2

    def loss_of(first: int, count: int, position: int = 0, seed: int = 1) -> LossApart:
        return backend.loss_apart(data.fetch(np.arange(first, first + count), position or first), seed)

    if not half or (whole := loss_of(0, 2 * half)) is None:
        return ""
    again, *halves = loss_of(0, 2 * half, position=2 * half, seed=2), loss_of(0, half), loss_of(half, half)
    if again is None or None in halves or not _close(whole[0], again[0]):
        return ""
    parts = [(loss, 1.0 if weight is None else weight) for loss, weight in filter(None, halves)]
    mean = sum(loss * weight for loss, weight in parts if weight) / (sum(weight for _, weight in parts) or math.nan)
    if not math.isfinite(whole[0] + mean) or _close(whole[0], mean):
        return ""
    if whole[1] is None:
        todo = 'if it is a mean over tokens, return (loss, {"weight": tokens}) and every division gives the same'
    else:
        todo = "is its weight the number of what it is the mean of?"
    return (
        f"{name}.loss: of {2 * half} samples it is {whole[0]:.5g}, and the mean over their halves is {mean:.5g}: what is trained depends "
        f"on how many workers and passes a global batch is divided among; {todo}"
    )


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))
