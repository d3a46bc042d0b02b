"""The state of a run as another machine shows it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dtrain.control.state import state_of
from dtrain.job.job import Job
from dtrain.record import folder


@pytest.mark.parametrize("ahead", [600.0, -600.0])
def test_a_run_that_is_being_started_is_not_lost_by_a_clock_that_is_wrong(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder.create(tmp_path, Job(name="a-run", script="x.py"))
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + ahead)
    assert state_of(run).phase == "created"
    os.utime(run.job_file, (right() - 30,) * 2)
    assert state_of(run).phase == "lost"
