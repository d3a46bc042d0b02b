"""The curves of a run follow from its event log alone: steps never fall, and none is drawn twice."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from typing import Any

import pytest

from dtrain.record import events
from dtrain.record.events import Event
from dtrain.record.tracker_entries import Curves, Ending, Entry


def timed(*history: Event) -> list[Event]:
    """The events one second apart."""
    return [dataclasses.replace(event, time=float(number)) for number, event in enumerate(history)]


def drawn(history: Iterable[Event]) -> list[Entry]:
    curves = Curves()
    return [entry for event in history for entry in curves.add(event)]


def started() -> Event:
    return events.RunStarted(run="r", target="t", strategy="ddp", cluster="local", workers=2, nodes=1)


def attempt(number: int, step: int) -> list[Event]:
    begun = events.AttemptStarted(attempt=number, step=step, checkpoint=None, nodes=("node0",), workers=2)
    return [begun, events.TrainingStarted(step=step, total_steps=100, attempt=number)]


def metrics(*steps: int) -> list[Event]:
    return [events.Metrics(step=step, values={"loss": 1 / step}, optimizer={"learning_rate": 0.1}) for step in steps]


def failure(number: int) -> Event:
    return events.FailureOccurred(kind="killed", message="killed by SIGKILL", rank=1, attempt=number)


def saved(step: int) -> Event:
    return events.CheckpointSaved(step=step, folder=f"step-{step}", bytes=10, weights="", stall_seconds=0.5)


KILLED = timed(
    started(), *attempt(1, 0), *metrics(10, 20, 30), saved(20), failure(1), *attempt(2, 20), *metrics(30, 40), saved(40),
    events.Evaluation(step=40, values={"accuracy": 0.5}), failure(2), *attempt(3, 40), *metrics(50),
    events.RunEnded(exit_code=0, reason="finished"),
)  # fmt: skip


def of(name: str, entries: list[Entry]) -> list[tuple[int, Any]]:
    return [(entry.step, entry.values[name]) for entry in entries if name in entry.values]


def test_a_step_that_was_trained_again_is_drawn_once() -> None:
    assert [step for step, _ in of("train/loss", drawn(KILLED))] == [10, 20, 30, 40, 50]
    assert of("optimizer/learning_rate", drawn(KILLED))[-1] == (50, 0.1)


def test_steps_never_fall_and_entries_are_counted() -> None:
    entries = drawn(KILLED)
    assert [entry.step for entry in entries] == sorted(entry.step for entry in entries)
    assert [entry.number for entry in entries] == list(range(len(entries)))


def test_restarts_and_failures_are_marks() -> None:
    entries = drawn(KILLED)
    kinds = [entry.kind for entry in entries if entry.kind]
    assert kinds == ["start", "attempt", "failure", "restart", "failure", "restart", "end"]
    assert of("run/attempt", entries) == [(0, 1.0), (30, 2.0), (40, 3.0)]
    assert of("run/failures", entries) == [(30, 1.0), (40, 2.0)]
    assert "rank 1: killed by SIGKILL" in next(entry.text for entry in entries if entry.kind == "failure")


def test_a_checkpoint_that_is_committed_late_is_drawn_at_the_newest_step() -> None:
    assert of("checkpoint/step", drawn(KILLED)) == [(30, 20.0), (40, 40.0)]


def test_a_late_evaluation_of_an_early_step_is_left_out() -> None:
    history = timed(*metrics(10), *(events.Evaluation(step=step, values={"accuracy": 0.1}) for step in (5, 10, 10)))
    assert of("eval/accuracy", drawn(history)) == [(10, 0.1)]


def test_a_step_before_one_that_was_drawn_is_left_out_if_it_is_reported_now_and_was_not_before() -> None:
    first = timed(*metrics(25), events.Evaluation(step=40, values={"accuracy": 0.1}), failure(1), *metrics(30, 40, 50))
    entries = drawn(first)
    assert [step for step, _ in of("train/loss", entries)] == [25, 40, 50]
    assert [entry.step for entry in entries] == sorted(entry.step for entry in entries)


def test_the_same_log_gives_the_same_entries_wherever_a_reader_begins_anew() -> None:
    whole = drawn(KILLED)
    for _ in range(20):
        cut = random.randrange(len(KILLED))
        first = drawn(KILLED[:cut])
        assert whole[: len(first)] == first


def test_resumes_go_on_with_the_numbers_and_the_ending_is_that_of_the_newest_supervisor() -> None:
    curves = Curves()
    left = [started(), *attempt(1, 0), *metrics(10), events.Requeued(step=10, words="scontrol"), events.RunEnded(exit_code=4, reason="preempted")]  # fmt: skip
    first = [entry for event in timed(*left) for entry in curves.add(event)]
    assert curves.ending == Ending(4, "preempted", requeued=True)
    second = [entry for event in timed(started(), *attempt(2, 10), *metrics(20)) for entry in curves.add(event)]
    assert curves.ending is None
    assert [entry.kind for entry in (*first, *second) if entry.kind] == [
        "start",
        "attempt",
        "requeue",
        "end",
        "resume",
        "restart",
    ]
    assert second[0].number == first[-1].number + 1


def test_goodput_counts_each_step_once_and_no_time_without_a_supervisor() -> None:
    first = timed(started(), *attempt(1, 0), *metrics(10, 20))
    # training from second 2 on: 1 of 3 s, then 2 of 4 s
    assert of("run/goodput", drawn(first)) == [(10, pytest.approx(1 / 3, abs=1e-3)), (20, pytest.approx(0.5))]
    again = timed(started(), *attempt(1, 0), *metrics(10, 20), failure(1), *attempt(2, 10), *metrics(20, 30))
    # seconds 7 to 8 repeat step 20, 8 to 9 are step 30: 3 of 9 s
    assert of("run/goodput", drawn(again))[-1] == (30, pytest.approx(3 / 9, abs=1e-3))
    later = [
        dataclasses.replace(event, time=event.time + 1000) for event in timed(started(), *attempt(2, 20), *metrics(30))
    ]
    # the first supervisor's 4 s are known from its last event on: 3 of 7 s
    assert of("run/goodput", drawn([*first, *later]))[-1] == (30, pytest.approx(3 / 7, abs=1e-3))
