"""What `dtrain bench` measured of strategies, and how a strategy that stands for others learns from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

StrategyChoice = tuple[str, dict[str, Any], str]
"""Name and options of a strategy, and why it was chosen."""


@dataclass(frozen=True)
class MeasuredStrategy:
    """What `dtrain bench` measured of a strategy."""

    name: str
    options: dict[str, Any]
    """Those that are not the default."""
    samples_per_second: float
    loss: float | None
    """On held-out data if there is some."""
    samples: int
    """That the run had trained on then; losses after other numbers of samples say nothing of each other."""
    run: str
    """Id of the run that measured it."""
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class MeasuredStrategies:
    """What was measured of strategies for one job on one machine."""

    found: tuple[MeasuredStrategy, ...] = ()
    """The fastest first."""
    outdated: tuple[str, ...] = ()
    """Why other measurements do not count any more."""


MUCH_HIGHER = 1.5
"""Times the lowest loss: what is faster at such a price is not chosen."""


def as_good(loss: float | None, losses: Iterable[float | None]) -> bool:
    """Pure. Whether a loss is finite and not much higher than the lowest of these; one that is not known is."""
    if loss is None:
        return True
    known = [one for one in losses if one is not None and math.isfinite(one)]
    return math.isfinite(loss) and (not known or loss <= MUCH_HIGHER * min(known) or min(known) <= 0)


@runtime_checkable
class LearnsFromBench(Protocol):
    """A `MetaStrategy` that prefers what was measured."""

    def learned(self, choice: StrategyChoice, measured: MeasuredStrategies) -> StrategyChoice:
        """Pure. What to use, and why, if `resolve` chose `choice` and this was measured."""
