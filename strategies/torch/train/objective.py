"""The objective of one optimizer step: the mean of its losses, by samples or by the weights that the user's code gives them.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dtrain.api.strategy import RankInfo
from dtrain.common.errors import UserError

from ..exact.tree_sums import local
from .loss_scale import LossScale


class Objective:
    """The losses of one worker's backward passes in one step. With weights w, gradients that are summed up from those of w · loss
    and averaged over the ranks become those of Σ w · loss / Σ w over all passes of all ranks when they are multiplied by `factor`."""

    def __init__(
        self, name: str, rank_info: RankInfo, passes: int = 1, *, weighted: dict[str, bool], exact: bool = False,
        scale: LossScale | None = None,
    ) -> None:  # fmt: skip
        """`exact`: gradients are averaged over all passes of all ranks, by `train.exact`; `name` is the method's, for messages. With a
        `scale`, weights count in its unit. `weighted` keeps from step to step what the ranks agreed on."""
        self._name = name
        self._rank, self._world_size = rank_info.rank, rank_info.world_size
        self._passes = passes
        self._exact = exact
        self._weighted = weighted
        self._scale = scale
        self._unit: Any = scale.unit if scale else 1.0
        self._weights: list[Any] = []
        self._unweighted = 0
        self._sum: Any = None

    def add(self, loss: Any, weight: Any, share: float) -> Any:
        """Return what the backward pass begins at; `share` is the loss's without a weight."""
        import torch

        counted = loss.detach().double() if self._exact else loss.detach()
        if weight is None:
            self._unweighted += 1
            begin = loss if self._exact or share == 1.0 else loss * share
            counted = counted if share == 1.0 else counted * share
        else:
            weight = torch.as_tensor(weight, dtype=torch.float64, device=loss.device).detach().reshape(())
            self._weights.append(weight)
            begin = loss * (weight / self._unit)
            counted = torch.where(weight > 0, counted * weight, 0.0)
        if self._weights and self._unweighted:
            raise UserError(f"{self._name} gave a weight for some losses of a step and none for others: give each one")
        self._sum = counted if self._sum is None else self._sum + counted
        return begin

    def reduced(self) -> tuple[Any, Any]:
        """Collective in the first step, and if there are weights. Return the loss, whose mean over the ranks is the objective, and the factor
        of the averaged gradients (None: 1). The weights of all passes are added in one order, whoever has them."""
        import torch
        import torch.distributed as dist

        self._agree()
        if not self._weights:
            return self._sum, None
        everyones = torch.zeros(self._world_size * self._passes, dtype=torch.float64, device=self._weights[0].device)
        begin = self._rank * self._passes
        everyones[begin : begin + len(self._weights)] = torch.stack(self._weights)
        if self._world_size > 1:
            dist.all_reduce(everyones)
        total = everyones.sum()
        inverse = torch.where(total > 0, 1.0 / total, 0.0)
        averaged_over = len(everyones) if self._exact else self._world_size
        factor = inverse * averaged_over * self._unit
        if self._scale:
            self._scale.count_in(total / len(everyones))
        return self._sum * inverse * self._world_size, factor

    def _agree(self) -> None:
        """Raise `UserError` if this rank's losses have weights and another's have none, or if that changes: the ranks would wait for each
        other."""
        import torch
        import torch.distributed as dist

        weighted = bool(self._weights)
        if self._name not in self._weighted:
            count = torch.tensor(float(weighted), device=self._sum.device)
            if self._world_size > 1:
                dist.all_reduce(count)
            if 0 < count.item() < self._world_size:
                raise UserError(
                    f"{self._name} gave a weight on {count.item():g} of {self._world_size} ranks: give each loss one"
                )
            self._weighted[self._name] = weighted
        elif self._weighted[self._name] != weighted:
            now, before = ("a weight", "none") if weighted else ("no weight", "one")
            raise UserError(
                f"{self._name} gave {now} for the loss of this step and {before} before: give each loss one"
            )


def multiply(parameters: Iterable[Any], factor: Any) -> None:
    """Multiply the gradients of these parameters, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = local(parameter.grad)
            gradient.mul_(factor.to(gradient.device))
