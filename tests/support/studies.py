"""Studies that tests begin, kill and look at."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from live import PROGRAMS, dtrain, wait_for

from dtrain.record import event_log
from dtrain.record.events import CheckpointSaved
from dtrain.record.folder import RunDir
from dtrain.record.lock import last_mark
from dtrain.study import folder
from dtrain.study.folder import StudyDir

RECIPE = str(PROGRAMS / "tuned.yaml")


def begin(runs: Path, *arguments: str, recipe: str = RECIPE) -> StudyDir:
    """A study that was begun and goes on without this process."""
    done = dtrain("tune", recipe, *arguments, "--runs", str(runs), "--detach", "--quiet")
    return folder.require(runs, done.stdout.strip())


def seen(study: StudyDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dtrain("status", str(study.path), "--json").stdout)
    return found


def story(study: StudyDir) -> list[Any]:
    """What happened to each trial, without times and names."""
    return [
        [one[key] for key in ("number", "state", "values", "rungs", "value", "step")] for one in seen(study)["trials"]
    ]


def digests(study: StudyDir) -> dict[str, str]:
    """Trial → digest of its last weights."""
    return {run.id.rpartition("-")[2]: digest(run) for run in study.trial_runs()}


def digest(run: RunDir) -> str:
    return [event.weights for event in event_log.read(run.events) if isinstance(event, CheckpointSaved)][-1]


def kill(study: StudyDir) -> None:
    """`kill -9` of the study's process."""
    pid = int(last_mark(study.path / "supervisors").split()[1])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not study.goes_on(), "the end of the study's process")


def has_lines(study: StudyDir, lines: int) -> bool:
    return journaled(study) >= lines


def journaled(study: StudyDir) -> int:
    return study.journal.read_bytes().count(b"\n") if study.journal.exists() else 0
