"""Having the cluster start a run again where it takes the nodes away, but not for ever where nothing comes of it."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

from dtrain import events, history
from dtrain.cluster import Requeues
from dtrain.errors import ClusterError, Exit, StorageError
from dtrain.outcome import Ending
from dtrain.plan import LaunchPlan
from dtrain.remote_checkpoint import store_of
from dtrain.rundir import RunDir


def queue_again(ending: Ending, plan: LaunchPlan, run: RunDir, log: events.EventLog) -> Ending:
    """Called last of all, since the cluster ends this process then; returns what became of it."""
    assert isinstance(plan.cluster, Requeues)
    step = None if plan.job.kind == "script" else _saved_step(plan, run)
    if step is not None and step == history.requeued_at(run):
        words = f"no progress since it was queued again at step {step}"
        return Ending(Exit.GAVE_UP, f"{ending.reason}; {words}")
    try:
        words = plan.cluster.again(run, ending.without)
    except ClusterError as error:
        return dataclasses.replace(ending, reason=f"{ending.reason}; not queued again: {error.message}")
    log.add("requeued", step=step, words=words, without=ending.without)
    return Ending(Exit.RESUMABLE, f"{ending.reason}; {words}")


def _saved_step(plan: LaunchPlan, run: RunDir) -> int | None:
    """Of the newest checkpoint; None where nobody knows."""
    with suppress(StorageError):
        return max(store_of(run, plan.job).steps(), default=0)
    return None
