"""Spans cut a run's whole time without a gap, whatever happened to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.record import events
from dtrain.record.events import Event
from dtrain.record.goodput import Kind, Timeline, TimelineBuilder
from dtrain.record.sample_ledger import RECORD, LedgerFile


def built(
    *history: Event, folder: Path = Path("/nowhere"), submitted: float | None = None, end: float | None = None
) -> Timeline:
    builder = TimelineBuilder(lambda attempt: LedgerFile(folder / str(attempt)), submitted)
    for event in history:
        builder.add(event)
    return builder.timeline(end)


def begun(time: float, kind: str = "task") -> Event:
    return events.RunStarted(time=time, run="r", target="t", strategy="s", cluster="c", workers=1, nodes=1, kind=kind)


def attempt(time: float, number: int, step: int) -> Event:
    return events.AttemptStarted(time=time, attempt=number, step=step, checkpoint=None, nodes=("n",), workers=1)


def ledger(folder: Path, number: int, first: int, *times: float) -> None:
    """Rank 0 did one step at each of these times."""
    records = [RECORD.pack(first + index, 0, 1, 0, time) for index, time in enumerate(times)]
    (folder / str(number)).write_bytes(b"".join(records))


def kinds(timeline: Timeline) -> list[tuple[str, float, float]]:
    return [(span.kind.value, span.begin, span.end) for span in timeline.spans]


def killed(folder: Path) -> list[Event]:
    """Ten steps of a second, of which a kill undoes three; nodes come late, an evaluation takes two seconds, a save half a second."""
    ledger(folder, 1, 0, *(104.0, 105.0, 106.0, 107.0, 108.0))
    ledger(folder, 2, 2, *(112.0, 113.0, 116.0))
    return [
        begun(100.0),
        events.NodeReady(time=101.0, node="n", host="h"),
        attempt(101.5, 1, 0),
        events.TrainingStarted(time=103.0, step=0, total_steps=5, attempt=1),
        events.Metrics(time=106.0, step=2, values={"loss": 1.0}, data_wait=0.5, attempt=1),
        events.CheckpointSaved(time=107.0, step=2, folder="f", bytes=1, weights="", stall_seconds=0.25, attempt=1),
        events.FailureOccurred(time=109.0, kind="killed", message="killed", attempt=1),
        attempt(110.0, 2, 2),
        events.TrainingStarted(time=111.0, step=2, total_steps=5, attempt=2),
        events.Evaluation(time=115.0, step=4, values={"loss": 1.0}, seconds=2.0, attempt=2),
        events.Metrics(time=116.1, step=5, values={"loss": 1.0}, data_wait=0.1, attempt=2),
        events.RunEnded(time=118.0, exit_code=0, reason="finished"),
    ]


def test_every_second_has_the_kind_of_what_was_done_in_it(tmp_path: Path) -> None:
    assert kinds(built(*killed(tmp_path), folder=tmp_path)) == [
        ("waiting_for_resources", 100.0, 101.0),
        ("init", 101.0, 104.0),
        ("training", 104.0, 105.0),
        ("wasted_steps", 105.0, 108.0),
        ("detection", 108.0, 109.0),
        ("restart", 109.0, 112.0),
        ("training", 112.0, 113.0),
        ("evaluation", 113.0, 115.0),
        ("training", 115.0, 116.0),
        ("shutdown", 116.0, 118.0),
    ]


def test_a_save_within_steps_that_stand_is_a_stall(tmp_path: Path) -> None:
    history = [
        event
        for event in killed(tmp_path)
        if not isinstance(event, events.FailureOccurred) and getattr(event, "attempt", 1) == 1
    ]
    found = built(*history, folder=tmp_path)
    assert ("checkpoint_stall", 105.0, 105.25) in kinds(found)
    assert found.seconds()["training"] + found.seconds()["data_wait"] == pytest.approx(3.75)


def test_a_failure_costs_its_wasted_steps_its_detection_and_its_restart(tmp_path: Path) -> None:
    (cost,) = built(*killed(tmp_path), folder=tmp_path).failures
    assert (cost.steps, cost.wasted_steps, cost.detection, cost.restart) == (3, 3.0, 1.0, 3.0)


def test_data_wait_is_taken_from_the_training_of_steps_that_stand(tmp_path: Path) -> None:
    found = built(*killed(tmp_path), folder=tmp_path)
    assert found.data_wait == pytest.approx(0.5 * 3.0 + 0.1 * 1.1)
    assert found.seconds()["training"] == pytest.approx(3.0 - found.data_wait)
    assert found.goodput == pytest.approx((3.0 - found.data_wait) / 18.0)


def test_without_a_ledger_events_tell_the_steps(tmp_path: Path) -> None:
    history = killed(tmp_path)
    for name in ("1", "2"):
        (tmp_path / name).unlink()
    found = dict.fromkeys(span.kind for span in built(*history).spans)
    assert {Kind.TRAINING, Kind.EVALUATION, Kind.RESTART, Kind.SHUTDOWN} <= set(found)


def test_a_queue_is_no_part_of_the_total_and_lowers_the_effective_share(tmp_path: Path) -> None:
    ledger(tmp_path, 1, 0, 111.0, 119.0)
    found = built(
        begun(110.0),
        attempt(110.0, 1, 0),
        events.RunEnded(time=120.0, exit_code=0, reason=""),
        folder=tmp_path,
        submitted=100.0,
    )
    assert kinds(found)[0] == ("queued", 100.0, 110.0)
    assert (found.total, found.goodput, found.effective_share) == (10.0, 0.8, 0.4)


def test_between_a_stop_and_a_resume_the_run_is_stopped_and_after_a_requeue_it_is_queued() -> None:
    left = events.RunEnded(time=10.0, exit_code=4, reason="")
    assert kinds(built(begun(0.0), left, begun(50.0), end=51.0))[1] == ("stopped", 10.0, 50.0)
    requeued = events.Requeued(time=9.0, step=1, words="")
    assert kinds(built(begun(0.0), requeued, left, begun(50.0), end=51.0))[1] == ("queued", 10.0, 50.0)
    assert kinds(built(begun(0.0), left, begun(50.0), end=51.0, submitted=20.0))[1:3] == [
        ("stopped", 10.0, 20.0),
        ("queued", 20.0, 50.0),
    ]


@st.composite
def histories(draw: Any) -> list[Event]:
    """Any events of a run at rising times."""
    found: list[Event] = [begun(0.0, draw(st.sampled_from(["task", "script"])))]
    time, step, number = 0.0, 0, 0

    def more() -> Iterator[Event]:
        nonlocal step, number
        yield events.NodeReady(time=time, node="n", host="h")
        yield events.WorkersStarted(time=time, attempt=number, node="n", pids={})
        yield events.TrainingStarted(time=time, step=step, total_steps=9, attempt=number)
        yield events.Metrics(time=time, step=step + 1, values={}, data_wait=0.5, attempt=number)
        yield events.Evaluation(time=time, step=step, values={}, seconds=0.7, attempt=number)
        yield events.CheckpointSaved(
            time=time, step=step, folder="f", bytes=1, weights="", stall_seconds=0.3, attempt=number
        )
        yield events.FailureOccurred(time=time, kind="k", message="m", attempt=number)
        yield attempt(time, number + 1, max(0, step - 2))
        yield events.RunEnded(time=time, exit_code=4, reason="")
        yield begun(time)

    for choice in draw(st.lists(st.integers(0, 9), max_size=40)):
        time += draw(st.sampled_from([0.0, 0.1, 1.0]))
        event = list(more())[choice]
        step = event.step if isinstance(event, events.Metrics | events.AttemptStarted) else step
        number += isinstance(event, events.AttemptStarted)
        found.append(event)
    return found


@given(histories())
def test_spans_follow_each_other_without_a_gap_and_add_up(history: list[Event]) -> None:
    found = built(*history, end=history[-1].time + 1)
    for before, after in zip(found.spans, found.spans[1:], strict=False):
        assert before.end == after.begin
        assert before.end > before.begin
    seconds = found.seconds()
    assert sum(seconds.values()) - seconds["queued"] == pytest.approx(found.total)
    assert 0 <= found.goodput <= 1
