"""The result of a bench: a row for each combination, how well more workers scale, and which one to take. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from dtrain.api.bench_choice import Measured, choice
from dtrain.bench.measurement import Measurement
from dtrain.bench.variants import WORKERS, Variant
from dtrain.common.lazy_dataclass import dataclass
from dtrain.show.render import counted, seconds, size

START_WORTH_SAYING = 2.0
"""Seconds by which a first step must come later to be weighed against the speed."""


@dataclass(frozen=True)
class Row:
    """A combination and what was measured."""

    variant: Variant
    measurement: Measurement | None = None
    problem: str = ""
    """Why there is no measurement."""
    runs: tuple[str, ...] = ()
    """Ids of the runs that measured it."""
    strategy: str = ""
    """The strategy that `auto` chose."""
    others: float = 0.0
    """The highest share of this machine's processors that other programs used during one of its runs, 0 to 1."""

    @property
    def speed(self) -> float:
        """Samples a second; 0 if it was not measured."""
        return (self.measurement.samples_per_second or 0.0) if self.measurement else 0.0

    @cached_property
    def facts(self) -> Measured | None:
        """Return the numbers that a choice is based on."""
        one = self.measurement
        if one is None or not one.samples_per_second:
            return None
        return Measured(one.samples_per_second, one.spread, one.quality, one.samples, self.workers, one.memory_bytes)

    @property
    def workers(self) -> int:
        """Number of workers that it trained on."""
        return self.variant.job.resources.workers if self.variant.job else 0


@dataclass(frozen=True)
class Recommendation:
    """The combination to take, and why."""

    row: Row
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class BenchResult:
    """Everything that a bench found."""

    rows: tuple[Row, ...]
    steps: int
    notes: tuple[str, ...] = ()
    """Remarks that a reader of the numbers must know."""
    interrupted: bool = False

    @property
    def measured(self) -> list[Row]:
        """The rows that have a speed."""
        return [row for row in self.rows if row.speed]

    @property
    def keys(self) -> list[str]:
        """Keys of `--over`."""
        return list(dict.fromkeys(key for row in self.rows for key in row.variant.values))

    @property
    def several_recipes(self) -> bool:
        """Whether the recipe's name tells rows apart."""
        return len({row.variant.name for row in self.rows}) > 1

    def efficiency(self, row: Row) -> float | None:
        """Speed of a worker, as a share of a worker's in the same combination on the fewest workers; None if there is no other."""
        same = [other for other in self.measured if _apart_from_workers(other) == _apart_from_workers(row)]
        least = min(same, key=lambda other: other.workers, default=row)
        if not row.speed or len({other.workers for other in same}) < 2:
            return None
        return row.speed / row.workers / (least.speed / least.workers)

    def recommendation(self) -> Recommendation | None:
        """The combination to take, by the rule of `dtrain.api.bench_choice.choice`; None if nothing can be recommended."""
        facts = [row.facts for row in self.measured if row.facts]
        taken = choice(facts)
        if taken is None:
            return None
        good = [row for row in self.measured if row.facts and row.facts.as_good_as(facts)]
        chosen = next(row for row in good if row.facts is taken)
        return Recommendation(chosen, tuple(_reasons(self, chosen, max(good, key=lambda row: row.speed), good)))


def _apart_from_workers(row: Row) -> tuple[Any, ...]:
    return row.variant.recipe, *((key, value) for key, value in row.variant.values.items() if key != WORKERS)


def _reasons(result: BenchResult, chosen: Row, fastest: Row, good: Sequence[Row]) -> list[str]:
    worse = [row for row in result.measured if row not in good]
    too_high = [
        f"{row.variant.label} is faster ({row.speed:,.0f} samples/s), but its loss is {row.measurement.quality:.4g}"
        for row in worse
        if row.speed > chosen.speed and row.measurement and row.measurement.quality is not None
    ]
    others = [row for row in result.measured if row is not chosen and (row in good or row.speed <= chosen.speed)]
    others.sort(key=lambda row: -row.speed)
    if not others:
        only = "it is the only one that was measured" if not too_high else "no other learned as well"
        return [f"{only}: {chosen.speed:,.0f} samples/s", *too_high]
    found = [_speed_reason(chosen, fastest, others[0])]
    efficiency = result.efficiency(chosen)
    if efficiency is not None and chosen.workers > 1:
        found.append(f"each of its {chosen.workers} workers does {efficiency:.0%} of what one does on the fewest")
    return found + _loss_reason(chosen, others) + _start_reason(chosen, others[0]) + too_high


def _speed_reason(chosen: Row, fastest: Row, next_one: Row) -> str:
    if chosen is not fastest:
        fewer = chosen.workers < fastest.workers
        why = (
            f"with {counted(chosen.workers, 'worker')} instead of {fastest.workers}" if fewer else _less_memory(chosen)
        )
        return f"{chosen.speed:,.0f} samples/s, as fast within the spread of the reports as the fastest ({fastest.variant.label}: {fastest.speed:,.0f}), {why}"
    text = (
        f"{chosen.speed:,.0f} samples/s, {chosen.speed / next_one.speed:.2f} times the next ({next_one.variant.label})"
    )
    if chosen.facts and next_one.facts and chosen.facts.overlaps(next_one.facts):
        text += "; their reports overlap, so this may be chance: measure longer (--steps, --repeats)"
    return text


def _less_memory(row: Row) -> str:
    memory = row.measurement.memory_bytes if row.measurement else None
    return f"with less memory ({size(memory)})" if memory else "and not slower by more than chance"


def _loss_reason(chosen: Row, others: Sequence[Row]) -> list[str]:
    losses = [row.measurement.quality for row in others if row.measurement and row.measurement.quality is not None]
    own = chosen.measurement
    if own is None or own.quality is None or not losses:
        return []
    low, high = min(losses), max(losses)
    there = f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"
    name = "held-out loss" if own.held_out else "loss"
    return [f"{name} {own.quality:.4g} after {own.samples:,} samples (the others: {there})"]


def _start_reason(chosen: Row, other: Row) -> list[str]:
    """From how many samples on the faster one has caught up, if it starts later."""
    mine, theirs = chosen.measurement, other.measurement
    if mine is None or theirs is None or mine.first_step_seconds is None or theirs.first_step_seconds is None:
        return []
    later = mine.first_step_seconds - theirs.first_step_seconds
    if later < START_WORTH_SAYING or chosen.speed <= other.speed:
        return []
    samples = later / (1 / other.speed - 1 / chosen.speed)
    return [
        f"its first step comes {seconds(later)} later than that of {other.variant.label}, which it has caught up with after "
        f"{samples:,.0f} samples ({seconds(samples / chosen.speed)})"
    ]


def as_json(result: BenchResult) -> dict[str, Any]:
    """Convert to plain data."""
    chosen = result.recommendation()
    return {
        "steps": result.steps, "interrupted": result.interrupted, "notes": list(result.notes),
        "rows": [_row_as_json(result, row) for row in result.rows],
        "recommendation": chosen and {
            "label": chosen.row.variant.label, "command": chosen.row.variant.command, "reasons": list(chosen.reasons),
        },
    }  # fmt: skip


def _row_as_json(result: BenchResult, row: Row) -> dict[str, Any]:
    variant, measured = row.variant, row.measurement
    numbers: dict[str, Any] = {}
    if measured:
        numbers = asdict(measured) | {"samples_per_second": measured.samples_per_second, "spread": measured.spread}
        numbers["held_out"] = dict(measured.held_out)
    return {
        "label": variant.label, "recipe": str(variant.recipe), "over": variant.values, "strategy": row.strategy,
        "workers": row.workers or None, "problem": row.problem, "runs": list(row.runs), "command": variant.command,
        "efficiency": result.efficiency(row), "others": row.others, **numbers,
    }  # fmt: skip
