"""The run of a trial: made of the study's recipe, code and the trial's values, trained up to a rung, and read."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dtrain.common.errors import Exit, NewerFormat, RunNotFound
from dtrain.common.files import PRIVATE_FILE
from dtrain.common.lazy_dataclass import dataclass
from dtrain.control import create, state
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Job
from dtrain.launch import recipe, registry
from dtrain.launch.tuning import Measure
from dtrain.launch.yaml_source import Document
from dtrain.record import code_snapshot, event_log
from dtrain.record.events import AttemptStarted, Event, RunEnded, StateTakenOver
from dtrain.record.folder import RunDir
from dtrain.record.folder import create as create_folder
from dtrain.record.metric_curves import MetricCurves
from dtrain.record.status import RunState
from dtrain.study.folder import StudyDir
from dtrain.study.rungs import Ladder

NOT_FINITE = re.compile(r"the (loss|gradient) is -?(nan|inf)\b")
"""Begins the message of a step whose numbers overflowed."""
OPTION = "tune.over"
"""Where the values of a trial come from, in messages."""


def document_with(study: StudyDir, values: Mapping[str, Any]) -> Document:
    """The recipe of one trial, without what is about the study."""
    document = study.document()
    for key, value in values.items():
        document.put(tuple(key.split(".")), value, f"{OPTION}.{key}")
    document.data.pop("tune", None)
    return document


def make(study: StudyDir, number: int, values: Mapping[str, Any], ladder: Ladder) -> RunDir:
    """A new run for a trial; what an earlier try has left of one is removed. Raises `UsageError` if the recipe cannot have these values."""
    document, run = document_with(study, values), study.trial(number)
    settings: dict[str, Any] = {"tags.study": study.id}
    if ladder.steps:
        settings["train.until"] = ladder.first(number)
        if study.job.kind == "task" and not study.job.train.evaluate_every:
            settings["train.evaluate_every"] = math.gcd(*ladder.steps)
    if study.tune.packing:
        settings["cluster"] = registry.default("cluster")
    for key, value in settings.items():
        document.put(tuple(key.split(".")), value, key)
    folder = Path(str(study.facts["folder"]))
    with code_snapshot.used(study.code, str(folder)):
        job = recipe.from_document(document, folder, runs=study.runs)
    if run.path.exists():
        shutil.rmtree(run.path)
    create_folder(study.runs, _grouped(job, study.id), run.id)
    run.recipe_copy.write_text(yaml.safe_dump(document.data, sort_keys=False))
    run.recipe_copy.chmod(PRIVATE_FILE)
    shutil.copyfile(study.code, run.code)
    return run


def _grouped(job: Job, group: str) -> Job:
    """The job with its trackers showing the trials of a study together, where a tracker knows groups and the recipe names none."""
    track = [
        replace(one, options=one.options | {"group": group}) if one.options.get("group", "") is None else one
        for one in job.track or ()
    ]
    return replace(job, track=tuple(track)) if track else job


def is_made(run: RunDir) -> bool:
    """Whether the run is there as a whole: its code is written last."""
    return run.code.is_file() and job_of(run) is not None


def job_of(run: RunDir) -> Job | None:
    """The job of a run; None if it is gone or damaged."""
    try:
        return run.job()
    except (RunNotFound, NewerFormat):
        return None


def go_on_until(run: RunDir, step: int | None, values: Mapping[str, Any]) -> None:
    """Give a run that waits at a rung the next one (None: it trains to its end), and these values; raises `UsageError` for values that the
    recipe cannot have."""
    given = [(tuple(key.split(".")), value, f"{OPTION}.{key}") for key, value in values.items()]
    create.prepare_resume(run, [*given, (("train", "until"), step, "train.until")], None)


@dataclass(frozen=True)
class Progress:
    """How far a trial is."""

    state: RunState
    until: int | None
    """The rung that its run trains up to; None: its end."""
    value: float | None
    """Of the metric so far; None if there is none."""
    reported: tuple[str, ...]
    """Names of all numbers that it has reported."""
    seconds: float
    """Time that it was supervised."""

    @property
    def is_at_rung(self) -> bool:
        """Whether the run has left, with its state saved, at the step that was agreed."""
        left = self.state.exit_code in (Exit.DONE, Exit.RESUMABLE)
        return left and self.until is not None and self.state.step == self.until and not self.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether the run has done its last step."""
        return self.state.exit_code == Exit.DONE and self.state.step == (self.state.total_steps or self.state.step)

    @property
    def lacks_nodes(self) -> bool:
        """Whether the run gave up since nodes were lost or did not come."""
        kinds = [failure.kind for failure in self.state.failures[-1:]]
        return self.state.exit_code == Exit.GAVE_UP and kinds in ([], [FailureKind.NODE_LOST])

    @property
    def failure(self) -> str:
        """Why it failed: the class and the message."""
        if self.state.failures:
            last = self.state.failures[-1]
            said = last.message.strip().splitlines() or [last.kind]
            return f"{'not finite' if NOT_FINITE.match(said[-1]) else last.kind}: {said[-1]}"
        return self.state.reason or self.state.outcome


def progress(run: RunDir, measure: Measure | None) -> Progress:
    """Read what a trial's run has done."""
    curves, seconds, began, last = MetricCurves(), 0.0, 0.0, 0.0
    for event in event_log.read(run.events):
        if isinstance(event, StateTakenOver):  # what was reported until then is of weights that are gone
            curves = MetricCurves()
        curves.add(event)
        seconds, began, last = _timed(event, seconds, began, last)
    job = job_of(run)
    value = measure.value(curves.metrics) if measure else None
    until = job.train.until if job else None
    running = last - began if began else 0.0
    return Progress(state.state_of(run), until, value, tuple(curves.metrics), seconds + running)


def _timed(event: Event, seconds: float, began: float, last: float) -> tuple[float, float, float]:
    """Add up the times from the first attempt of a supervisor to its end."""
    if isinstance(event, AttemptStarted) and not began:
        began = event.time
    if isinstance(event, RunEnded):
        return seconds + (event.time - began if began else 0.0), 0.0, event.time
    return seconds, began, event.time
