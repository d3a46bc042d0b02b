"""`train.stop_when` ends a run whose evaluations get no better, and none whose first one was not finite."""

from __future__ import annotations

import math

import pytest

from dtrain.job.job import StopWhen
from dtrain.worker.early_stopping import EarlyStopping


def stops_at(values: list[float], **wanted: object) -> int | None:
    stopping = EarlyStopping(StopWhen("f1", **{"mode": "max", "patience": 2} | wanted))  # type: ignore[arg-type]
    return next((step for step, value in enumerate(values) if stopping.reason(step, {"f1": value})), None)


@pytest.mark.parametrize("first", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_first_value_that_is_not_finite_is_forgotten(first: float, mode: str) -> None:
    better = [0.1, 0.5, 0.8] if mode == "max" else [0.8, 0.5, 0.1]
    assert stops_at([first, *better], mode=mode) is None


def test_values_that_are_not_finite_are_no_better() -> None:
    assert stops_at([0.5, math.nan, math.nan]) == 2
    assert stops_at([0.5, math.inf, math.inf]) == 2
    assert stops_at([math.nan, math.nan, math.nan]) == 2


def test_it_ends_after_its_patience() -> None:
    assert stops_at([0.1, 0.5, 0.5, 0.4, 0.9]) == 3
    assert stops_at([0.1, 0.11, 0.12], min_delta=0.1) == 2
