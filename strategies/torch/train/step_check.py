"""The look at loss and gradient before the optimizer steps, and the search for what was not finite first.

With `train.on_nonfinite: stop` nothing is sent for it: every rank knows the averaged gradient, and its own losses. The answers that
all ranks must agree on (`skip`, `rollback`, `train.spike`) take one collective of a few numbers in each step, and on a GPU one wait.

Importing this module imports no framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dtrain.api.step_checks import Judge, StepSeen
from dtrain.api.strategy import RankInfo

from .loss_scale import LossScale
from .losses import LateLosses

COLLECTIVE = "SyncBatchNorm"
"""A module whose forward pass waits for the other ranks."""


class StepCheck:
    """Checks the steps of one training backend."""

    def __init__(self, rank_info: RankInfo, device: Any, late: LateLosses) -> None:
        self._rank_info = rank_info
        self._device = device
        self._late = late
        self._losses: list[Any] = []
        self._buffers: list[tuple[Any, Any]] = []
        self.judge: Judge | None = None
        """The check of the current step."""

    @property
    def wants_norm(self) -> bool:
        """Whether the norm of the gradient is looked at in every step."""
        return self.judge is not None or self._late.active

    def begin(self, judge: Judge | None, buffers: Iterable[Any]) -> None:
        """A step begins, whose judge this is; a forward pass on a bad batch spoils buffers (batch norm's running statistics), too."""
        self._losses.clear()
        self.judge = judge
        if self.judge:
            self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]

    def add(self, loss: Any, number: int) -> None:
        """The loss of pass `number`, before it is weighed; raises `NonFiniteLoss`."""
        self._late.add(loss, number)
        if self.judge:
            self._losses.append(loss.detach())

    def may_step(self, norm: Any, scale: LossScale | None = None) -> bool:
        """Collective if somebody judges. Whether the optimizer steps with a gradient of this norm (None: it cannot be had), of a loss that
        was scaled by this."""
        import torch
        import torch.distributed as dist

        if self.judge is None or not self._losses:
            if norm is not None:
                self._late.add_norm(norm)
            return True
        ranks, count = self._rank_info.world_size, len(self._losses)
        seen = torch.zeros(ranks * count + 1, dtype=torch.float64, device=self._device)
        begin = self._rank_info.rank * count
        seen[begin : begin + count] = torch.stack([loss.double().reshape(()) for loss in self._losses])
        if norm is not None and self._rank_info.rank == 0:  # one rank's, so that all judge by the same bits
            seen[-1] = norm
        if ranks > 1:
            dist.all_reduce(seen)
        *losses, whole = seen.tolist()
        blamed = scale.blamed() if scale and not math.isfinite(whole) else 1.0
        return self.judge(StepSeen(tuple(losses), whole, blamed))

    def undo(self) -> None:
        """The step is left out: buffers become what they were."""
        for buffer, before in self._buffers:
            buffer.detach().copy_(before)


def origin(models: Mapping[str, Any], batch: Any, loss_of: Callable[[Any], Any], *, gradient: bool) -> str | None:
    """`loss_of` computes the loss with these models."""
    import torch

    if any(COLLECTIVE in type(module).__name__ for model in models.values() for module in model.modules()):
        return None
    if _spoiled(batch):
        return "the batch itself"
    found: list[str] = []
    handles = [
        module.register_forward_hook(_watch(f"{key}.{name}".strip("."), found))
        for key, model in models.items() for name, module in model.named_modules()
    ]  # fmt: skip
    try:
        with torch.set_grad_enabled(gradient):
            loss = loss_of(batch)
        if found or _spoiled(loss):
            return found[0] if found else "the loss, computed from finite outputs"
        return _first_parameter(models, loss) if gradient else ""
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, found: list[str]) -> Callable[[Any, Any, Any], None]:
    """A hook that notes the first module with an output that is not finite; inner modules are heard before those around them."""

    def look(module: Any, _inputs: Any, output: Any) -> None:
        if not found and _spoiled(output):
            found.append(f"the output of {name or 'the model'} ({type(module).__name__})")

    return look


def _first_parameter(models: Mapping[str, Any], loss: Any) -> str:
    """The first parameter whose gradient, of this rank alone, is not finite. No hook of a strategy hears of this backward pass."""
    import torch

    named = [
        (f"{key}.{name}".strip("."), parameter)
        for key, model in models.items() for name, parameter in model.named_parameters() if parameter.requires_grad
    ]  # fmt: skip
    gradients: Sequence[Any] = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    bad = [name for (name, _), one in zip(named, gradients, strict=True) if one is not None and _spoiled(one)]
    return f"the gradient of {bad[0]}" if bad else ""


def _spoiled(value: Any) -> bool:
    import torch
    from torch.utils._pytree import tree_leaves

    return any(
        isinstance(one, torch.Tensor) and one.is_floating_point() and not bool(torch.isfinite(one).all())
        for one in tree_leaves(value)
    )
