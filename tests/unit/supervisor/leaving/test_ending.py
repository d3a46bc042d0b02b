"""An attempt has ended well if the checkpoint of the step that was asked for is on disk, whatever the workers' exit codes are."""

from __future__ import annotations

import pytest

from dtrain.api.reports import EndedEarly, LeftAtStep
from dtrain.record.events import TrainingStarted
from dtrain.supervisor.leaving.ending import Ending
from dtrain.supervisor.outcome import Drained, Outcome, Succeeded


def ended(saved: int, kind: str = "task", *said: object, trained: int | None = 20, leaving: bool = False) -> Outcome:
    """The outcome of an attempt of 20 steps whose newest checkpoint is of a step, after these reports."""
    ending = Ending(1, kind=kind)
    ending.see(TrainingStarted(step=0, total_steps=20))
    for report in said:
        assert isinstance(report, EndedEarly | LeftAtStep)
        ending.hear(report)
    ending.exited(0, trained)
    ending.asked = leaving
    return ending.outcome(lambda step: "" if saved >= step else f"only {saved} of {step}")


def test_a_task_is_done_when_its_last_step_is_saved() -> None:
    assert ended(20) == Succeeded()
    assert ended(15) == Succeeded("only 15 of 20")
    assert ended(15, trained=15) == Succeeded("only 15 of 20"), "exit code 0 without the last steps"


def test_one_that_ended_early_is_done_when_that_step_is_saved() -> None:
    assert ended(12, "task", EndedEarly(12, "no better")) == Succeeded("", "ended early at step 12: no better")
    assert isinstance(found := ended(10, "task", EndedEarly(12, "no better")), Succeeded)
    assert found.unsaved


def test_a_function_is_done_when_what_it_trained_is_saved() -> None:
    assert ended(8, "function", trained=8) == Succeeded()
    assert ended(0, "function", trained=None) == Succeeded()
    assert ended(7, "function", trained=8) == Succeeded("only 7 of 8")


def test_a_script_keeps_its_own_checkpoints() -> None:
    assert ended(0, "script") == Succeeded()


@pytest.mark.parametrize(("saved", "said"), [(7, 7), (5, None)])
def test_one_that_left_says_a_step_only_if_it_is_saved(saved: int, said: int | None) -> None:
    assert ended(saved, "task", LeftAtStep(7), leaving=True) == Drained(said)
