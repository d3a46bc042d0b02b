"""Every second of a run is counted once, under the name of what was done in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtrain.record.folder import RunDir
from dtrain.record.goodput import account


def _run_with(folder: Path, kind: str, *events: tuple[float, str, dict[str, Any]]) -> RunDir:
    run = RunDir(folder)
    run.create_folders()
    begin = {
        "run": "r", "target": "t.py", "strategy": "s", "cluster": "c", "workers": 1, "nodes": 1, "kind": kind,
    }  # fmt: skip
    lines = [{"time": 100.0, "event": "run_started", **begin}]
    lines += [{"time": time, "event": name, **fields} for time, name, fields in events]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


ATTEMPTS = (
    (100.1, "attempt", {"attempt": 1, "step": 0, "workers": 1, "nodes": ["n"], "ranks": [0]}),
    (100.5, "started", {"attempt": 1, "node": "n", "pids": {"0": 1}}),
    (110.5, "failure", {"kind": "crash", "message": "killed", "attempt": 1}),
    (110.6, "attempt", {"attempt": 2, "step": 0, "workers": 1, "nodes": ["n"], "ranks": [0]}),
    (111.0, "started", {"attempt": 2, "node": "n", "pids": {"0": 2}}),
)


def test_the_time_of_a_script_is_its_running_and_not_the_end(tmp_path: Path) -> None:
    found = account(_run_with(tmp_path, "script", *ATTEMPTS), now=131.0)
    assert found["init"] == pytest.approx(0.5)
    assert found["script"] == pytest.approx(10.0 + 20.0)
    assert found["restart"] == pytest.approx(0.5)
    assert found["shutdown"] == found["detection"] == 0
    parts = sum(value for name, value in found.items() if name != "total")
    assert found["total"] == pytest.approx(parts) == 31.0


def test_a_task_that_fails_before_its_first_step_has_not_run(tmp_path: Path) -> None:
    found = account(_run_with(tmp_path, "task", *ATTEMPTS), now=131.0)
    assert found["script"] == found["detection"] == 0
    assert found["init"] == pytest.approx(31.0)


def test_a_log_that_cannot_be_read_costs_the_account_alone(tmp_path: Path) -> None:
    run = _run_with(tmp_path, "task", *ATTEMPTS)
    run.events.unlink()
    run.events.symlink_to(run.events)  # too many levels of links
    assert account(run, now=131.0) == {}
