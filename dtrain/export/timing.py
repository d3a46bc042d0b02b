"""How long a model takes for a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

SPEED_SECONDS = 1.0
"""Spent on measuring one batch size."""
MOST_CALLS = 200
WARM_UP_CALLS = 3


def milliseconds(call: Callable[[], Any]) -> float:
    """Median time of a call."""
    for _ in range(WARM_UP_CALLS):
        call()
    taken: list[float] = []
    end = time.perf_counter() + SPEED_SECONDS
    while len(taken) < MOST_CALLS and (len(taken) < WARM_UP_CALLS or time.perf_counter() < end):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1000 * median(taken)


def first_samples(inputs: list[Any], size: int, there: int) -> list[Any]:
    """The first samples of a batch of `there`; inputs without that dimension as they are."""
    return [array[:size].copy() if array.ndim and array.shape[0] == there else array for array in inputs]
