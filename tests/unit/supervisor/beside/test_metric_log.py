"""Metrics of a usual run are all logged; those of millions of short steps are bounded by time, and the last ones are always there."""

from __future__ import annotations

from pathlib import Path

from dtrain.record.event_log import EventLog, read
from dtrain.record.events import Metrics, UserWarned
from dtrain.supervisor.beside.metric_log import EVENTS, MetricLog


def logged(path: Path, reports: int, pause: float) -> list[int]:
    """The steps that are in the log after reports at this distance in seconds."""
    log = EventLog(path / "events.jsonl")
    metrics = MetricLog(log)
    for step in range(reports):
        metrics.add(Metrics(step=step, values={}), step * pause)
    metrics.end()
    log.close()
    return [event.step for event in read(log.path) if isinstance(event, Metrics)]


def test_of_a_usual_run_all_are_logged(tmp_path: Path) -> None:
    assert logged(tmp_path, 5000, 0.001) == list(range(5000))


def test_later_ones_are_bounded_by_time_and_the_last_is_there(tmp_path: Path) -> None:
    steps = logged(tmp_path, 60_000, 0.001)
    assert len(steps) < 3 * EVENTS
    assert steps[-1] == 59_999
    assert steps == sorted(set(steps))


def test_other_events_are_never_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    metrics = MetricLog(log)
    for step in range(EVENTS + 50):
        metrics.add(Metrics(step=step, values={}), 0.0)
        metrics.add(UserWarned(text=str(step)), 0.0)
    log.close()
    assert sum(isinstance(event, UserWarned) for event in read(log.path)) == EVENTS + 50
