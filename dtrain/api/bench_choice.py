"""Results of `dtrain bench`, the rule that chooses among them, and the method by which a strategy learns from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dtrain.common.lazy_dataclass import dataclass

CLOSE = 0.95
"""Times the highest speed: what reaches it is as fast, and other things decide."""
CLOSE_BY_CHANCE = 0.85
"""The same if the reports of the two overlap."""
MUCH_HIGHER = 1.5
"""Times the lowest loss: what is faster at such a price is not taken."""
StrategyChoice = tuple[str, dict[str, Any], str]
"""Name and options of a strategy, and why it was chosen."""


@dataclass(frozen=True)
class Measured:
    """The numbers that a choice is based on."""

    samples_per_second: float
    spread: tuple[float, float] | None
    """Quartiles of the reports."""
    loss: float | None
    """On held-out data if there is some."""
    samples: int
    """Samples trained on at that point; losses after other numbers of samples cannot be compared."""
    workers: int
    memory_bytes: int | None

    def overlaps(self, other: Measured) -> bool:
        """Whether the middle halves of their reports have speeds in common."""
        mine, theirs = self.spread, other.spread
        return bool(mine and theirs and mine[0] <= theirs[1] and theirs[0] <= mine[1])

    def as_fast_as(self, fastest: Measured) -> bool:
        """Whether the difference to the fastest is small, or may be chance."""
        share = CLOSE_BY_CHANCE if self.overlaps(fastest) else CLOSE
        return self.samples_per_second >= share * fastest.samples_per_second

    def as_good_as(self, others: Sequence[Measured]) -> bool:
        """Whether its loss is finite and not much higher than the lowest after as many samples; one that is not known is."""
        if self.loss is None:
            return True
        losses = [one.loss for one in others if one.samples == self.samples and one.loss is not None]
        lowest = min((loss for loss in losses if math.isfinite(loss)), default=self.loss)
        return math.isfinite(self.loss) and (lowest <= 0 or self.loss <= MUCH_HIGHER * lowest)


def choice(measured: Sequence[Measured]) -> Measured | None:
    """Pure. The fastest whose loss is not much higher than the lowest; of equally fast ones the one with the fewest workers, then
    with the least memory. None if there is none."""
    good = [one for one in measured if one.as_good_as(measured)]
    fastest = max(good, key=lambda one: one.samples_per_second, default=None)
    if fastest is None:
        return None
    return min((one for one in good if one.as_fast_as(fastest)), key=_cost)


def _cost(one: Measured) -> tuple[float, float, float]:
    return one.workers, one.memory_bytes or math.inf, -one.samples_per_second


@dataclass(frozen=True)
class MeasuredStrategy:
    """A strategy that was measured."""

    name: str
    options: dict[str, Any]
    """Options that differ from the defaults."""
    measured: Measured
    run: str
    """Id of the run that measured it."""
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class MeasuredStrategies:
    """Measurements of strategies for one job on one machine."""

    found: tuple[MeasuredStrategy, ...] = ()
    """The fastest first."""
    outdated: tuple[str, ...] = ()
    """Why other measurements do not count any more."""
