"""Losses that are not finite, found without a wait for the device in any step.

Importing this module imports no framework.
"""

from __future__ import annotations

import math
from typing import Any

from dtrain.api.strategy import NonFiniteLoss

MOST_KEPT = 4096


class LateLosses:
    """On the host a loss is looked at when it is there; on a device it is kept until something waits for the device anyway
    (a report, a checkpoint)."""

    def __init__(self, *, active: bool) -> None:
        self._active = active
        self._kept: list[tuple[int, int, Any]] = []
        self._step = 0

    def add(self, loss: Any, number: int) -> None:
        """The loss of pass `number` of the step; raises `NonFiniteLoss`."""
        if not self._active:
            return
        if loss.device.type == "cpu":
            value = loss.detach().item()
            if not math.isfinite(value):
                raise NonFiniteLoss(value, number)
            return
        self._kept.append((self._step, number, loss.detach()))
        if len(self._kept) >= MOST_KEPT:
            self.check()

    def next_step(self) -> None:
        """The losses of a step are complete."""
        self._step += 1

    def check(self) -> None:
        """Wait for the device and look at all that was kept; raises `NonFiniteLoss` for the first that is not finite."""
        if not self._kept:
            return
        import torch

        kept, self._kept = self._kept, []
        values = torch.stack([loss.reshape(()) for _, _, loss in kept]).tolist()
        for (step, number, _), value in zip(kept, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteLoss(value, number, self._step - 1 - step)
