"""The curves of a run from its event log: metrics by step, speed and data wait by time. Of a step that was trained again after a
restart, the last value counts."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.events import AttemptStarted, Evaluation, Event, Metrics

HELD_OUT = "held-out "
"""Begins the names of metrics on held-out data."""
Point = tuple[float, float]
MOST_KEPT = 8192
"""Points of a `ThinCurve`."""


@dataclass
class Curve:
    """Values at rising positions: steps, or seconds since 1970."""

    at: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.at)

    def add(self, at: float, value: float) -> None:
        """Append a point; points at this position or beyond it are replaced."""
        if self.at and at <= self.at[-1]:
            self.rewind(math.nextafter(at, -math.inf))
        self.at.append(at)
        self.values.append(value)

    def rewind(self, last: float) -> None:
        """Forget the points after this position."""
        keep = bisect_right(self.at, last)
        del self.at[keep:], self.values[keep:]

    @property
    def last(self) -> float | None:
        """Newest value."""
        return self.values[-1] if self.values else None

    def best(self, mode: str) -> Point | None:
        """(position, value) of the lowest ("min") or highest ("max") finite value."""
        finite = [(value, at) for at, value in zip(self.at, self.values, strict=True) if math.isfinite(value)]
        if not finite:
            return None
        value, at = min(finite) if mode == "min" else max(finite, key=lambda one: (one[0], -one[1]))
        return at, value

    def thinned(self, most: int) -> list[Point]:
        """Return about this number of points at most: of each part of the curve its first, lowest, highest and last,
        so that no extreme is lost. Values that are not finite are left out."""
        points = [(at, value) for at, value in zip(self.at, self.values, strict=True) if math.isfinite(value)]
        if len(points) <= most:
            return points
        return list(_extremes(points, max(1, most // 4)))

    def means(self, parts: int) -> list[Point]:
        """The mean of the finite values of each of so many parts of equal width, at the middle of the part's points."""
        sums: dict[int, tuple[float, float, int]] = {}
        width = (self.at[-1] - self.at[0]) / parts or 1.0 if self.at else 1.0
        for at, value in zip(self.at, self.values, strict=True):
            if math.isfinite(value):
                part = min(parts - 1, int((at - self.at[0]) / width))
                before = sums.get(part, (0.0, 0.0, 0))
                sums[part] = (before[0] + at, before[1] + value, before[2] + 1)
        return [(place / count, total / count) for place, total, count in sums.values()]


class ThinCurve(Curve):
    """A curve of as many points as can be seen, whatever it is given: none of its extremes is lost."""

    def add(self, at: float, value: float) -> None:
        super().add(at, value)
        if len(self) > MOST_KEPT:
            points = self.thinned(MOST_KEPT // 2)
            self.at, self.values = array("d", [at for at, _ in points]), array("d", [value for _, value in points])


def _extremes(points: Sequence[Point], parts: int) -> Iterator[Point]:
    """Parts of equal width, not of equal numbers of points: what is drawn has a width."""
    begin, width = points[0][0], (points[-1][0] - points[0][0]) / parts
    start = 0
    while start < len(points):
        part = int((points[start][0] - begin) / width) if width else parts
        end = start + 1
        while end < len(points) and (not width or points[end][0] < begin + (part + 1) * width):
            end += 1
        chunk = range(start, end)
        lowest = min(chunk, key=lambda index: points[index][1])
        highest = max(chunk, key=lambda index: points[index][1])
        for index in sorted({start, lowest, highest, end - 1}):
            yield points[index]
        start = end


def lower_is_better(name: str) -> bool:
    """Whether lower values of a metric of this name are better; for unknown names, higher values are."""
    return any(
        word in name.lower() for word in ("loss", "error", "perplexity", "mse", "mae", "rmse", "wer", "divergence")
    )


class MetricCurves:
    """All curves of a run, built event by event."""

    def __init__(self, curve: type[Curve] = Curve) -> None:
        self._curve = curve
        self.metrics: dict[str, Curve] = {}
        """Name → curve by step; metrics on held-out data begin with `held-out `."""
        self.optimizer: dict[str, Curve] = {}
        """Learning rates and gradient norms by step."""
        self.speed = curve()
        """Samples a second by time."""
        self.data_wait = curve()
        """Share of the training time that waited for data, 0 to 1, by time."""
        self.restarts: list[int] = []
        """Steps that attempts after the first began at."""
        self.begun: list[float] = []
        """When attempts began, in seconds since 1970."""

    def _add(self, curves: dict[str, Curve], step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if (known := curves.get(name)) is None:
                known = curves[name] = self._curve()
            known.add(step, float(value))

    def add(self, event: Event) -> None:
        """Add the values of the next event."""
        if isinstance(event, Metrics):
            self._add(self.metrics, event.step, event.values)
            self._add(self.optimizer, event.step, event.optimizer)
            if event.samples_per_second is not None:
                self.speed.add(event.time, event.samples_per_second)
            if event.data_wait is not None:
                self.data_wait.add(event.time, event.data_wait)
        elif isinstance(event, Evaluation):
            self._add(self.metrics, event.step, {HELD_OUT + name: value for name, value in event.values.items()})
        elif isinstance(event, AttemptStarted):
            for curve in (*self.metrics.values(), *self.optimizer.values()):
                curve.rewind(event.step)
            self.begun.append(event.time)
            if event.attempt > 1:
                self.restarts.append(event.step)

    def parts_from(self, other: MetricCurves, name: str = "loss") -> int | None:
        """The first step that both runs reported and at which a metric differs; None if they are equal."""
        mine, theirs = self.metrics.get(name), other.metrics.get(name)
        if mine is None or theirs is None:
            return None
        known = dict(zip(theirs.at, theirs.values, strict=True))
        for at, value in zip(mine.at, mine.values, strict=True):
            there = known.get(at, value)
            if there != value and not (math.isnan(there) and math.isnan(value)):
                return int(at)
        return None
