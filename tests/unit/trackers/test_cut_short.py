"""Trackers that keep files go on exactly where they were, wherever a kill cut the file short."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dtrain.api.tracker import Entry, TrackedRun, Tracker
from dtrain.launch import registry

ENTRIES = [Entry(number, number + 1, 1.0 * number, {"train/loss": 1.0 * number, "b": 2.0}) for number in range(6)]


def opened(name: str, folder: Path) -> tuple[Tracker, int]:
    tracker = registry.tracker(name, {})
    held = tracker.open(TrackedRun("run", "recipe", folder, {}))
    assert held is not None
    return tracker, held


def written(name: str, folder: Path) -> Path:
    """The file with four entries."""
    tracker, held = opened(name, folder)
    assert held == 0
    tracker.log(ENTRIES[:4])
    tracker.close(None)
    return next(path for path in folder.iterdir())


@pytest.mark.parametrize("cut", [1, 7, 12, 20, 30, 45, 60, 75, 90, 105, 120])
def test_a_csv_file_that_was_cut_short_has_every_value_once(cut: int, tmp_path: Path) -> None:
    path = written("csv", tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    tracker, held = opened("csv", tmp_path)
    tracker.log(ENTRIES[held:])
    tracker.close(None)
    with path.open(newline="") as file:
        rows = [(int(row["step"]), row["name"]) for row in csv.DictReader(file)]
    assert rows == [(entry.step, name) for entry in ENTRIES for name in entry.values]


@pytest.mark.extras
@pytest.mark.parametrize("cut", [1, 3, 10, 40, 70, 100, 150])
def test_event_files_that_were_cut_short_have_every_step_once(cut: int, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = written("tensorboard", tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    tracker, held = opened("tensorboard", tmp_path)
    assert held < 4
    tracker.log(ENTRIES[held:])
    tracker.close(None)
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert [(one.step, one.value) for one in reader.Scalars("train/loss")] == [
        (entry.step, entry.values["train/loss"]) for entry in ENTRIES
    ]
