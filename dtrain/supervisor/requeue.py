"""Having the cluster start a run again where it takes the nodes away, but not for ever where nothing comes of it."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

from dtrain.api.cluster import SupportsRequeue
from dtrain.checkpoint.factory import store_of
from dtrain.common.errors import ClusterError, Exit, StorageError
from dtrain.run import event_log, history
from dtrain.run.folder import RunDir
from dtrain.spec.job import Job
from dtrain.supervisor.results import RunResult


def requeue_run(
    ending: RunResult, job: Job, cluster: SupportsRequeue, run: RunDir, log: event_log.EventLog
) -> RunResult:
    """Called last of all, since the cluster ends this process then; returns what became of it."""
    step = None if job.kind == "script" else _saved_step(job, run)
    if step is not None and step == history.requeued_at(run):
        action = f"no progress since it was queued again at step {step}"
        return RunResult(Exit.GAVE_UP, f"{ending.reason}; {action}")
    try:
        action = cluster.requeue(run, ending.exclude)
    except ClusterError as error:
        return dataclasses.replace(ending, reason=f"{ending.reason}; not queued again: {error.message}")
    log.add("requeued", step=step, action=action, exclude=ending.exclude)
    return RunResult(Exit.RESUMABLE, f"{ending.reason}; {action}")


def _saved_step(job: Job, run: RunDir) -> int | None:
    """Of the newest checkpoint; None where nobody knows."""
    with suppress(StorageError):
        return max(store_of(run, job).steps(), default=0)
    return None
