"""One training step in the task's own hands, under the PyTorch strategies: the argument of `train_step(step)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dtrain.api.strategy import RankInfo
from dtrain.common.errors import UserError
from dtrain.job.task_answers import loss_answer, named_numbers

from ..state.state import ONLY
from ..watch.measures import StepMeasures
from .objective import Objective
from .parallel import Parallel
from .step_check import StepCheck


@dataclass(frozen=True)
class OwnStep:
    """A step whose forward and backward passes are the task's::

        def train_step(self, step):
            real = step.batch
            fake = step.models["g"](noise(len(real)))
            d_loss = self.d_loss(step.models["d"], real, fake.detach())
            step.minimize(d_loss, "d")
            g_loss = self.g_loss(step.models["d"], fake)
            step.minimize(g_loss, "g")
            return {"loss": g_loss, "d_loss": d_loss}

    Whoever wants it by hand calls `zero_grad`, `backward` and `step` on the optimizers instead. What it returns is reported:
    a loss, or a dict of numbers."""

    number: int
    """Number of the step, counted from 0."""
    total_steps: int
    """Of the whole run."""
    batch: Any
    """This worker's part of the global batch, on its device."""
    models: Mapping[str, Any]
    """Models by the names that `models` gave them, wrapped for the strategy."""
    optimizers: Mapping[str, Any]
    """Optimizers by the names that `optimizers` gave them."""
    parallel: Parallel
    clip_norm: float | None
    measures: StepMeasures
    check: StepCheck
    rank_info: RankInfo
    weight: float = 1.0
    """Weight of this worker's loss in the mean over the ranks: not 1 if their parts of the batch differ in size."""

    @property
    def model(self) -> Any:
        """The only model of a task with `model`."""
        return self._only(self.models, "models")

    @property
    def optimizer(self) -> Any:
        """The only optimizer of a task with `optimizer`."""
        return self._only(self.optimizers, "optimizers")

    def _only(self, things: Mapping[str, Any], what: str) -> Any:
        if ONLY not in things:
            raise UserError(f"this task has several {what}: take step.{what}[name] ({', '.join(things)})")
        return things[ONLY]

    def minimize(self, loss: Any, name: str = ONLY, *, weight: Any = None) -> None:
        """Collective. Update what the optimizer of this name trains: gradients of `loss`, averaged over the ranks and
        clipped to `train.clip_norm`; gradients that other optimizers had are not used. `weight` is the number of what the loss
        is the mean of (tokens), if that is not the samples of the batch."""
        if name not in self.optimizers:
            raise UserError(f"there is no optimizer {name!r}: this task has {', '.join(map(repr, self.optimizers))}")
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        objective = Objective(f"train_step{name and f' ({name})'}", self.rank_info, weighted=self.parallel.weighted)
        objective.add(loss, weight, self.weight).backward()
        _, factor = objective.reduced()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.parallel.apply([optimizer], parameters, self.clip_norm, self.measures, self.check, name, factor)
        optimizer.zero_grad()


def reported(given: Any, name: str) -> dict[str, Any]:
    """Convert the result of `train_step` (its name for messages): a loss, or named numbers."""
    if not isinstance(given, Mapping):
        return {"loss": loss_answer(given, name).loss.detach()}
    numbers = named_numbers(given, name)
    return {key: value.detach() if hasattr(value, "detach") else value for key, value in numbers.items()}
