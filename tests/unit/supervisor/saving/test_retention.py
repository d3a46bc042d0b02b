"""Which checkpoints stay on disk."""

from __future__ import annotations

import math
from pathlib import Path

from dtrain.job.job import Checkpoint, KeepBest
from dtrain.record.event_log import EventLog
from dtrain.record.events import Evaluation
from dtrain.supervisor.saving.retention import CheckpointRetention

STEPS = [60, 50, 40, 30, 20, 10]


def evaluations(values: dict[int, float]) -> list[Evaluation]:
    return [Evaluation(attempt=1, step=step, values={"loss": value}) for step, value in values.items()]


def kept(wanted: Checkpoint, values: dict[int, float], folder: Path) -> list[int]:
    retention = CheckpointRetention(wanted, folder / "none")
    for event in evaluations(values):
        retention.see(event)
    return sorted(retention.kept(STEPS))


def test_the_newest_stay(tmp_path: Path) -> None:
    assert kept(Checkpoint(keep=2), {}, tmp_path) == [50, 60]


def test_the_best_stay_and_those_that_were_not_evaluated_are_none_of_them(tmp_path: Path) -> None:
    wanted = Checkpoint(keep=1, keep_best=KeepBest("loss", "min", 2))
    assert kept(wanted, {10: 3.0, 20: 1.0, 30: 2.0, 35: 0.1}, tmp_path) == [20, 30, 60]
    wanted = Checkpoint(keep=1, keep_best=KeepBest("loss", "max", 1))
    assert kept(wanted, {10: 3.0, 20: 1.0}, tmp_path) == [10, 60]


def test_what_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    wanted = Checkpoint(keep=1, keep_best=KeepBest("loss", "max", 1))
    assert kept(wanted, {10: math.nan, 20: math.inf, 30: 1.0}, tmp_path) == [30, 60]


def test_those_of_every_nth_step_stay(tmp_path: Path) -> None:
    assert kept(Checkpoint(keep=1, keep_every=20), {}, tmp_path) == [20, 40, 60]


def test_evaluations_of_earlier_supervisors_count(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for event in evaluations({10: 1.0, 20: 2.0}):
        log.add(event)
    log.close()
    wanted = Checkpoint(keep=1, keep_best=KeepBest("loss", "min", 1))
    assert sorted(CheckpointRetention(wanted, log.path).kept(STEPS)) == [10, 60]
