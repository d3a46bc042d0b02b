"""The account in the words of a summary, of this version and of older ones."""

from __future__ import annotations

from pathlib import Path

from dtrain.cli.summary import account, summary
from dtrain.record import events, status
from dtrain.record.folder import RunDir
from dtrain.record.status import RunState
from dtrain.show import render


def test_an_account_names_its_goodput_and_what_took_time() -> None:
    report = {
        "total": 10.0,
        "training": 8.0,
        "wasted_steps": 1.5,
        "detection": 0.001,
        "goodput": 0.8,
        "effective_share": 0.7,
    }
    assert account(report) == "80% goodput (training 8 s, wasted steps 1.5 s)"


def test_an_account_of_an_older_version_is_still_shown() -> None:
    report = {"total": 10.0, "training": 8.0, "repeating": 1.0, "training_share": 0.8}
    assert account(report) == "80% goodput (training 8 s, repeating 1 s)"


def test_a_script_has_no_goodput() -> None:
    assert account({"total": 2.0, "script": 2.0}) == "script 2 s"


def test_the_steps_of_a_run_that_failed_before_its_first_report_are_said() -> None:
    state = status.fold(
        [
            events.RunStarted(run="a", target="t", strategy="s", cluster="c", workers=1, nodes=1, kind="task"),
            events.AttemptStarted(attempt=1, step=0, checkpoint=None, nodes=("n",), workers=1),
            events.TrainingStarted(step=0, total_steps=40, attempt=1),
            events.FailureOccurred(kind="bug", message="boom", rank=0, step=23, attempt=1),
            events.RunEnded(exit_code=1, reason="boom"),
        ]
    )
    assert "steps      23 of 40" in summary(state, RunDir(Path("a")))


def test_workers_are_shown_by_the_step_that_they_are_at() -> None:
    state = RunState(pids={str(rank): 100 + rank for rank in range(6)}, phase="running")
    state.hosts = {"node0": "here"}
    assert render.workers(state) == "ranks 0 to 5 running"
    state.steps = dict.fromkeys("01235", 1185) | {"4": 1184}
    assert render.workers(state) == "ranks 0 to 3, 5 at step 1185; rank 4 at step 1184"
    state.steps = {str(rank): 1180 + rank for rank in range(6)}
    assert render.workers(state) == "6 at steps 1180 to 1185"
