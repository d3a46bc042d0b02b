"""What the phases of a step take, from the marks that a pass sets; the clock is the test's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dtrain.strategies.torch.watch.phases import MOST_STEPS, StepPhases


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def phases(clock: Clock) -> StepPhases:
    made = StepPhases(SimpleNamespace(type="cpu"))
    made._mark = lambda: clock.now
    return made


def output(clock: Clock, seconds: float) -> Any:
    """A tensor whose backward pass takes so long."""
    weight = torch.ones(3, requires_grad=True)
    value = weight * 2

    def work(gradient: Any) -> None:
        clock.wait(seconds)

    weight.register_hook(work)
    return value


def test_forward_and_backward_of_all_passes_are_told_apart(phases: StepPhases, clock: Clock) -> None:
    for _ in range(2):
        phases.begin()
        for forward, backward in ((5.0, 2.0), (1.0, 3.0)):
            clock.wait(forward)
            loss = output(clock, backward).sum()
            phases.watch(loss)
            loss.backward()
        clock.wait(7.0)
        phases.end()
    assert phases.take() == {"forward": 6.0, "backward": 5.0, "reduce": 0.0}
    assert phases.take() == {}


def test_what_waits_inside_a_pass_is_taken_out_of_it_and_counts_once(phases: StepPhases, clock: Clock) -> None:
    inner = SimpleNamespace(unshard=clock.wait)
    phases.wait_in(inner, ["unshard"])
    outer = SimpleNamespace(wait=inner.unshard)
    phases.wait_in(outer, ["wait"])
    phases.begin()
    clock.wait(1.0)
    outer.wait(4.0)
    loss = output(clock, 2.0).sum()
    phases.watch(loss)
    loss.backward()
    clock.wait(3.0)
    phases.reduced()
    phases.end()
    outer.wait(9.0)  # in an evaluation
    assert phases.take() == {"forward": 1.0, "backward": 2.0, "reduce": 7.0}


def test_a_second_output_of_the_same_pass_changes_nothing(phases: StepPhases, clock: Clock) -> None:
    phases.begin()
    clock.wait(1.0)
    one, other = output(clock, 2.0), output(clock, 3.0)
    phases.watch_output(None, None, {"one": one})
    phases.watch_output(None, None, (other,))
    (one + other).sum().backward()
    phases.end()
    assert phases.take() == {"forward": 1.0, "backward": 5.0, "reduce": 0.0}


def test_what_nobody_asks_for_does_not_pile_up(phases: StepPhases) -> None:
    for _ in range(MOST_STEPS + 20):
        phases.begin()
        phases.reduced()
    phases.end()
    assert len(phases._steps) == MOST_STEPS
