"""Which trial goes on: the rungs at which trials wait, and who is promoted from one to the next (successive halving, asynchronous). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.job import Job
from dtrain.job.tune import Tune
from dtrain.launch.tuning import EARLY_STOPS, PBT

RUNGS = 3
"""Number of rungs if the recipe names none."""
GENERATIONS = 8
"""Parts of the training between the rungs of a population if the recipe names none."""
FIRST_ONES = 4
"""Results at a rung up to which the rules `median` and `percentile` let everybody go on."""


@dataclass(frozen=True)
class Ladder:
    """The rungs of a study, each a number of steps, and the share of trials that goes on at each."""

    steps: tuple[int, ...] = ()
    keep: float = 1.0
    first_ones: int = 0
    brackets: bool = False
    """Whether later trials begin at higher rungs, in turns (hyperband)."""

    def first(self, number: int) -> int | None:
        """The step at which a new trial of this number is looked at first; None: at its end."""
        steps = self.steps[number % (len(self.steps) + 1) :] if self.brackets else self.steps
        return steps[0] if steps else None

    def after(self, step: int) -> int | None:
        """The rung after this step; None: the end."""
        return next((rung for rung in self.steps if rung > step), None)

    def promoted(self, costs: Mapping[int, Mapping[int, float]], waiting: Mapping[int, int]) -> int | None:
        """The trial that goes on: of those that wait at the highest rung and are among its best, the best; None if there is none.
        `costs`: trial → rung → cost there; `waiting`: trial → rung."""
        for rung in reversed(self.steps):
            ranked = sorted((there[rung], number) for number, there in costs.items() if rung in there)
            goes_on = len(ranked) if len(ranked) <= self.first_ones else self._share(len(ranked))
            for cost, number in ranked[:goes_on]:
                if waiting.get(number) == rung and cost < math.inf:
                    return number
        return None

    def _share(self, results: int) -> int:
        exact = results * self.keep
        return math.ceil(exact - 1e-9) if self.first_ones else math.floor(exact + 1e-9)


def ladder_of(job: Job, tune: Tune) -> Ladder:
    """The rungs that a recipe asks for."""
    if tune.early_stop == "none":
        return Ladder()
    keep = tune.keep or EARLY_STOPS[tune.early_stop]
    every = job.train.evaluate_every or 1
    total = job.train.steps or 0
    wanted = tune.rungs or _default_rungs(tune.early_stop, total)
    rungs = sorted({math.ceil(step / every) * every for step in wanted})
    steps = tuple(step for step in rungs if not total or step < total)
    return Ladder(
        steps, keep, FIRST_ONES if tune.early_stop in ("median", "percentile") else 0, tune.early_stop == "hyperband"
    )


def _default_rungs(early_stop: str, total: int) -> list[int]:
    if early_stop == PBT:
        return [max(1, total * part // GENERATIONS) for part in range(1, GENERATIONS)]
    return [max(1, total // 3**power) for power in range(RUNGS, 0, -1)]
