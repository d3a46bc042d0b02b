"""Requeue after preemption, unless no checkpoint was committed since the last requeue."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

from dtrain.api.cluster import Cluster
from dtrain.checkpoint.factory import store_of
from dtrain.common.errors import ClusterError, Exit, StorageError
from dtrain.job.job import Job
from dtrain.record import event_log, history
from dtrain.record.events import Requeued
from dtrain.record.folder import RunDir
from dtrain.supervisor.outcome import RunResult


def requeue_run(result: RunResult, job: Job, cluster: Cluster, run: RunDir, log: event_log.EventLog) -> RunResult:
    """Called last of all, since the cluster ends this process then; returns what became of it."""
    step = None if job.kind == "script" else _saved_step(job, run)
    if step is not None and step == history.requeued_at(run):
        action = f"no progress since it was queued again at step {step}"
        return RunResult(Exit.GAVE_UP, f"{result.reason}; {action}")
    try:
        action = cluster.requeue(run, result.exclude)
    except ClusterError as error:
        return dataclasses.replace(result, reason=f"{result.reason}; not queued again: {error.message}")
    log.add(Requeued(step=step, words=action, without=result.exclude))
    return RunResult(Exit.RESUMABLE, f"{result.reason}; {action}")


def _saved_step(job: Job, run: RunDir) -> int | None:
    """Return the step of the newest checkpoint; None if it is unknown."""
    with suppress(StorageError):
        return max(store_of(run, job).steps(), default=0)
    return None
