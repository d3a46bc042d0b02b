"""The steps that a requested profile covers."""

from __future__ import annotations

from dtrain.record.inspection import InspectionRequest
from dtrain.supervisor.beside.profile_window import profile_steps


def test_it_begins_where_no_rank_is_when_it_hears_of_it() -> None:
    request = InspectionRequest("x", (1, 3), profile_steps=5)
    window = profile_steps(1, request, {0: 100, 1: 101}, rate=50.0)
    assert (window.step, window.steps, window.ranks) == (201, 5, (1, 3))
    assert profile_steps(1, request, {0: 100}, rate=0.01).step == 103


def test_rank_0_is_profiled_if_none_is_named() -> None:
    assert profile_steps(1, InspectionRequest("x", profile_steps=1), {}, rate=0.0).ranks == (0,)
