"""The factor of the loss with `strategy.precision: fp16`, without which small gradients would become zero.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dtrain.common.errors import UserError

from ..state.state import Stored

NAME = "dtrain_loss_scale"
"""Name under which its state is registered."""


class LossScale:
    """One `torch.amp.GradScaler` for all optimizers of a step: they step together or not at all. Its state is the same on every rank."""

    def __init__(self, device: Any) -> None:
        import torch

        self._scaler = torch.amp.GradScaler(device.type)
        self._unscaled: list[Any] = []
        """Optimizers that have gradients in the step under way."""
        self.unit: Any = 1.0
        """What weights of losses are divided by before the backward pass: a sum over thousands of tokens leaves fp16's range."""

    def times(self, loss: Any) -> Any:
        """Return the loss times the scale."""
        return self._scaler.scale(loss)

    def count_in(self, mean: Any) -> None:
        """Have the next step count weights in a power of two near to the mean of this step's."""
        import torch

        self.unit = torch.where(mean > 0, torch.exp2(torch.ceil(torch.log2(mean))), self.unit)

    def unscale(self, optimizers: Sequence[Any]) -> None:
        """Collective if parameters are sharded. Divide the averaged gradients by the scale, in place."""
        import torch

        self._unscaled = []
        for optimizer in optimizers:
            found = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
            if any(gradient.dtype == torch.float16 for gradient in found):
                raise UserError(
                    "the model has parameters in fp16, whose gradients cannot be scaled: keep them in fp32, and strategy.precision: fp16 "
                    "computes in fp16 where that is safe"
                )
            if found:
                self._scaler.unscale_(optimizer)
                self._unscaled.append(optimizer)

    def blamed(self) -> float:
        """Wait for the device. Return the scale if a gradient of the step under way is not finite; 1.0 if all are."""
        found = [self._scaler._found_inf_per_device(optimizer) for optimizer in self._unscaled]
        overflowed = any(value.item() for devices in found for value in devices.values())
        return float(self._scaler.get_scale()) if overflowed else 1.0

    def update(self) -> None:
        """Lower the scale after a gradient that was not finite; raise it after many that were."""
        if self._unscaled:
            self._scaler.update()

    def keep_in(self, registered: dict[str, Any], stored: Stored | None) -> None:
        """Collective. Have it saved with what is registered, and restore it if the checkpoint has one: a run may turn to fp16 later."""
        registered[NAME] = self
        if stored and NAME in stored.names("registered"):
            stored.give("registered", NAME, self)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints."""
        return {"scaler": self._scaler.state_dict(), "unit": float(self.unit)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self._scaler.load_state_dict(state["scaler"])
        self.unit = state["unit"]
