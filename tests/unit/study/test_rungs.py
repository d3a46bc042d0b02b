"""Who is promoted from rung to rung."""

from __future__ import annotations

import math

from dtrain.study.rungs import Ladder

ASHA = Ladder((10, 30, 90), keep=1 / 3)


def test_one_of_three_goes_on_and_the_best_of_them() -> None:
    costs = {0: {10: 3.0}, 1: {10: 1.0}, 2: {10: 2.0}}
    assert ASHA.promoted(costs, {0: 10, 1: 10, 2: 10}) == 1
    assert ASHA.promoted({0: {10: 3.0}, 1: {10: 1.0}}, {0: 10, 1: 10}) is None


def test_a_trial_that_was_promoted_counts_at_the_rung_that_it_left() -> None:
    costs = {0: {10: 3.0}, 1: {10: 1.0}, 2: {10: 2.0}}
    assert ASHA.promoted(costs, {0: 10, 2: 10}) is None
    more = costs | {3: {10: 4.0}, 4: {10: 5.0}, 5: {10: 6.0}}
    assert ASHA.promoted(more, dict.fromkeys((0, 2, 3, 4, 5), 10)) == 2


def test_the_highest_rung_comes_first() -> None:
    costs = {number: {10: float(number), 30: float(number)} for number in range(3)} | {3: {10: -1.0}}
    assert ASHA.promoted(costs, {0: 30, 1: 30, 2: 30, 3: 10}) == 0


def test_what_is_not_finite_is_never_promoted() -> None:
    assert ASHA.promoted({number: {10: math.inf} for number in range(3)}, {0: 10, 1: 10, 2: 10}) is None


def test_by_the_median_the_first_ones_and_then_the_better_half_go_on() -> None:
    median = Ladder((10,), keep=1 / 2, first_ones=4)
    assert median.promoted({0: {10: 5.0}}, {0: 10}) == 0
    costs = {number: {10: float(number)} for number in range(5)}
    assert median.promoted(costs, {4: 10}) is None
    assert median.promoted(costs | {5: {10: 1.5}}, {4: 10, 5: 10}) == 5


def test_hyperband_begins_at_higher_rungs_in_turns() -> None:
    ladder = Ladder((10, 30), keep=1 / 3, brackets=True)
    assert [ladder.first(number) for number in range(4)] == [10, 30, None, 10]
    assert [ladder.after(step) for step in (10, 30)] == [30, None]
