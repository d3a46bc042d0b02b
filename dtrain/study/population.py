"""Training of a population: which trials go on at a rung from the state of a better one, and with which values. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.tune import Tune
from dtrain.launch.tuning import Domain

FACTORS = (0.8, 1.2)
"""Of a number that is changed."""


@dataclass(frozen=True)
class TakeOver:
    """A trial goes on at a rung from the state of another one, with other values."""

    step: int
    trial: int
    """The other one."""
    values: dict[str, Any]
    """All that it goes on with: key of the recipe → value."""


@dataclass(frozen=True)
class Member:
    """A trial of the population at a rung."""

    number: int
    cost: float
    """Less is better."""
    values: Mapping[str, Any]


def take_overs(
    members: Sequence[Member], step: int, space: Mapping[str, Domain], tune: Tune, keep: float
) -> dict[int, TakeOver]:
    """Trial → what it takes over at this rung; the others go on as they are. `members`: all that have been there, as they were there."""
    ranked = sorted(members, key=lambda one: (one.cost, one.number))
    count = min(max(1, int(len(ranked) * (1 - keep) + 1e-9)), len(ranked) // 2)
    found = {}
    for member in ranked[len(ranked) - count :]:
        chance = random.Random(f"{tune.sampler_seed}:{step}:{member.number}")
        other = chance.choice(ranked[:count])
        if other.cost < member.cost:
            found[member.number] = TakeOver(step, other.number, _perturbed(other.values, space, tune, chance))
    return found


def _perturbed(
    values: Mapping[str, Any], space: Mapping[str, Domain], tune: Tune, chance: random.Random
) -> dict[str, Any]:
    changed = space if tune.perturb is None else tune.perturb
    return {key: _beside(value, space[key], chance) if key in changed else value for key, value in values.items()}


def _beside(value: Any, domain: Domain, chance: random.Random) -> Any:
    """Return another value of the domain, near this one."""
    if domain.kind == "choice":
        at = domain.choices.index(value)
        return chance.choice(domain.choices[max(0, at - 1) : at] + domain.choices[at + 1 : at + 2] or domain.choices)
    factor = chance.choice(FACTORS)
    if domain.kind == "float":
        return min(max(value * factor, domain.low), domain.high)
    steps = round((value * factor - value) / domain.step) or (1 if factor > 1 else -1)
    last = domain.low + (domain.high - domain.low) // domain.step * domain.step
    return int(min(max(value + steps * domain.step, domain.low), last))
