"""Finds the checkpoint of a run that is meant: of a step, the best by a metric of its evaluations, or the newest."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from dtrain.checkpoint.factory import store_of
from dtrain.checkpoint.store import chosen_step, numbers_of
from dtrain.common.errors import UsageError, nearest
from dtrain.job.job import Job
from dtrain.record import event_log
from dtrain.record.events import Evaluation
from dtrain.record.folder import RunDir
from dtrain.record.metric_curves import lower_is_better
from dtrain.storage import run_sync

FETCHED = ".fetched"
"""Folder below that of the runs for what is brought here of runs that are kept elsewhere; it is no run itself."""
STEP_FOLDER = re.compile(r"step-(\d+)(-attempt-\d+)?")


def of_name(runs: Path, name: str, step: int | None = None, best: str | None = None) -> tuple[RunDir, Job, int]:
    """The run and the step of a committed checkpoint, not verified yet. `name` is the run's, or the path of a checkpoint's folder.
    Raises `UsageError` for what is not there."""
    if step is not None and best is not None:
        raise UsageError("a checkpoint is chosen by its step or by a metric, not by both", "Leave out one of them.")
    path = Path(name).absolute()
    named = STEP_FOLDER.fullmatch(path.name) if "://" not in name else None
    if named and (path.parent.parent / "job.json").is_file():
        if best is not None or step not in (None, int(named[1])):
            raise UsageError(f"{name} is one checkpoint", "To choose another one of its run, name the run.")
        name, step = str(path.parent.parent), int(named[1])
    run = run_sync.find(runs / FETCHED if "://" in name else runs, name)
    job = run.job()
    if job.kind == "script":
        raise UsageError(
            f"{run.id} ran a script, which keeps its own checkpoints: dtrain knows no weights of it",
            "Read the files that the script wrote.",
        )
    steps = store_of(run, job).steps()
    chosen = chosen_step(steps, step)
    return run, job, best_step(run, job, steps, best) if best else chosen


def best_step(run: RunDir, job: Job, steps: Sequence[int], metric: str) -> int:
    """The step of the committed checkpoint whose evaluation was the best by a metric; of equally good ones the earlier."""
    values: dict[int, float] = {}
    known: dict[str, None] = {}
    for event in event_log.read(run.events):
        if isinstance(event, Evaluation):
            known |= dict.fromkeys(event.values)
            values[event.step] = event.values.get(metric, math.nan)
    if metric not in known:
        hint = nearest(metric, list(known)) if known else "It has no evaluations: set train.evaluate_every."
        raise UsageError(f"the evaluations of {run.id} have no metric '{metric}'", hint)
    there = [step for step in steps if math.isfinite(values.get(step, math.nan))]
    if not there:
        raise UsageError(
            f"no checkpoint of {run.id} is of a step that was evaluated: there are those of the steps {numbers_of(steps)}",
            f"checkpoint: {{keep_best: {{metric: {metric}, mode: max}}}} in the recipe saves at evaluations; or choose a step.",
        )
    kept = job.checkpoint.keep_best
    lowest = kept.mode == "min" if kept and kept.metric == metric else lower_is_better(metric)
    return min(there, key=lambda step: (values[step] if lowest else -values[step], step))
