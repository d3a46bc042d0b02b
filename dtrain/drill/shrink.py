"""Finds the fewest faults of a schedule that still break a promise."""

from __future__ import annotations

from collections.abc import Callable

from dtrain.drill.fault import Schedule


def shrunk(schedule: Schedule, breaks: Callable[[Schedule], bool], is_over: Callable[[], bool]) -> Schedule:
    """Leave out one fault after the other, the late ones first, for as long as what remains breaks a promise and there is time."""
    least = schedule
    for fault in reversed(schedule):
        fewer = tuple(one for one in least if one is not fault)
        if is_over() or not fewer:
            break
        if breaks(fewer):
            least = fewer
    return least
