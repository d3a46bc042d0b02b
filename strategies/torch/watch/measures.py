"""Learning rates and gradient norms of the steps that are reported; nothing waits for the device before the report.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtrain.api.training_backend import StepNumber

from ..state.state import ONLY

MOST_GROUPS = 8
"""Of parameters, whose learning rates are shown one by one."""


class StepMeasures:
    """Measurements of the newest step that is reported."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._values: dict[str, Any] = {}
        self.due = False
        """Whether the step under way is reported."""

    def begin(self, number: StepNumber, optimizers: Mapping[str, Any]) -> None:
        """A step begins, with the learning rates that it is done with."""
        done = number.step + 1
        self.due = done % self._log_every == 0 or done == number.total_steps
        if self.due:
            self._values = rates(optimizers)

    def gradient(self, norm: Any, name: str = ONLY) -> None:
        """The norm of the averaged gradient of an optimizer's parameters, before it was clipped."""
        self._values[_named("gradient_norm", name)] = norm.detach()

    def values(self, optimizers: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers; waits for the device. A loop of the user's own is measured at this call."""
        return {name: float(value) for name, value in (self._values or rates(optimizers)).items()}


def peak_device_memory() -> int:
    """Return the most bytes that the devices of this process have held at once."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_initialized() else 0


def rates(optimizers: Mapping[str, Any]) -> dict[str, Any]:
    """`learning_rate`, with the optimizer's name and the number of the group if there are several."""
    found: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        groups = optimizer.param_groups[:MOST_GROUPS]
        for number, group in enumerate(groups):
            rate, place = group["lr"], f"{name}.{number}".lstrip(".") if len(groups) > 1 else name
            # One on the device is changed in place by the next step.
            found[_named("learning_rate", place)] = rate.detach().clone() if hasattr(rate, "detach") else rate
    return found


def _named(what: str, name: str) -> str:
    return f"{what}/{name}" if name else what
