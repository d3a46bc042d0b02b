"""Run folders of runs that nobody trained, written by what writes those of real ones."""

from __future__ import annotations

import math
from pathlib import Path

from dtrain.job.job import Job
from dtrain.launch import recipe
from dtrain.record import events, folder
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir

EVERY = 10
"""Steps between two reports, as by default."""
TINY = Path(__file__).parents[1] / "programs" / "tiny.yaml"


def tiny(root: Path, *given: tuple[tuple[str, ...], object, str]) -> Job:
    """The job of the smallest recipe."""
    return recipe.load(TINY, list(given), runs=root)


def made(root: Path, job: Job, steps: int, *, name: str = "", exit_code: int | None = 0, failure: str = "") -> RunDir:
    """A run of so many steps whose loss falls; None: it has no end."""
    run = folder.create(root, job, name)
    run.recipe_copy.write_text(TINY.read_text())
    log = EventLog(run.events)
    begin = events.RunStarted(
        run=run.id, target=job.target, strategy=job.strategy.name, cluster=job.cluster.name, workers=2, nodes=1, kind="task", global_batch=64,
    )  # fmt: skip
    for event in (
        begin,
        events.AttemptStarted(attempt=1, step=0, checkpoint=None, nodes=("n",), workers=2),
        events.TrainingStarted(step=0, total_steps=steps, attempt=1),
    ):
        log.add(event)
    for step in range(EVERY, steps + 1, EVERY):
        values = {"loss": 2 / math.sqrt(step), "accuracy": 1 - 1 / math.sqrt(step)}
        log.add(events.Metrics(step=step, values=values, samples_per_second=9e3, data_wait=0.01, attempt=1))
        if step % (10 * EVERY) == 0:
            log.add(events.Evaluation(step=step, values=values, seconds=0.1, attempt=1))
    if failure:
        log.add(
            events.FailureOccurred(
                kind="bug", message=failure, rank=0, step=steps, attempt=1, traceback="Traceback: mend me"
            )
        )
    if exit_code is not None:
        log.add(events.RunEnded(exit_code=exit_code, reason=failure))
    log.close()
    return run
