"""Losses and gradients that are not finite, found without a wait for the device in any step.

Importing this module imports no framework.
"""

from __future__ import annotations

import math
from typing import Any

from dtrain.api.training_backend import NonFiniteGradient, NonFiniteLoss

MOST_KEPT = 4096
GRADIENT = -1
"""Stands for the gradient in place of the number of a pass."""


class LateLosses:
    """On the host a loss or a norm is looked at when it is there; on a device it is kept until something waits for the device anyway
    (a report, a checkpoint)."""

    def __init__(self) -> None:
        self.active = False
        """Whether anything is looked at."""
        self._kept: list[tuple[int, int, Any]] = []
        self._step = 0

    def add(self, loss: Any, number: int) -> None:
        """The loss of pass `number` of the step; raises `NonFiniteLoss`."""
        if not self.active:
            return
        if loss.device.type == "cpu":
            value = loss.detach().item()
            if not math.isfinite(value):
                raise NonFiniteLoss(value, number)
            return
        self._kept.append((self._step, number, loss.detach()))
        if len(self._kept) >= MOST_KEPT:
            self.check()

    def add_norm(self, norm: Any) -> None:
        """The norm of the step's gradient; raises `NonFiniteGradient`."""
        if not self.active:
            return
        if norm.device.type == "cpu":
            value = norm.detach().item()
            if not math.isfinite(value):
                raise NonFiniteGradient(value)
            return
        self._kept.append((self._step, GRADIENT, norm.detach()))

    def next_step(self) -> None:
        """The losses of a step are complete."""
        self._step += 1

    def check(self) -> None:
        """Wait for the device and look at all that was kept; raises `NonFiniteLoss` or `NonFiniteGradient` for the first that
        is not finite."""
        if not self._kept:
            return
        import torch

        kept, self._kept = self._kept, []
        values = torch.stack([one.reshape(()).double() for _, _, one in kept]).tolist()
        for (step, number, _), value in zip(kept, values, strict=True):
            if math.isfinite(value):
                continue
            ago = self._step - 1 - step
            raise NonFiniteGradient(value, ago) if number == GRADIENT else NonFiniteLoss(value, number, ago)
