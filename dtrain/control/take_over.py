"""Gives a run that has left the state that another run saved: weights, optimizer and everything else of a checkpoint."""

from __future__ import annotations

import shutil
from contextlib import closing

from dtrain.checkpoint.factory import store_of
from dtrain.checkpoint.store import CheckpointOrigin, CheckpointShard
from dtrain.common.errors import CheckpointError
from dtrain.common.files import hashed
from dtrain.record import event_log, history
from dtrain.record.event_log import EventLog
from dtrain.record.events import StateTakenOver
from dtrain.record.folder import RunDir

LOCK_SECONDS = 30.0
"""The supervisor that has just left may still hold the run."""


def take_over(run: RunDir, other: RunDir, step: int) -> None:
    """Idempotent. The run goes on from the checkpoint of this step of the other run. Raises `CheckpointError` and `UsageError` if that one
    is damaged or gone."""
    if any(taken.step == step and taken.run == other.id for taken in taken_by(run)):
        return
    with run.lock(LOCK_SECONDS) as lease:
        store, theirs = store_of(run, run.job(), lease), other.job()
        folder, manifest = store_of(other, theirs).verified(step)
        attempt = store.new_attempt(history.attempts(run))
        staged = store.staging(attempt, step)
        for name, entry in manifest.files.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, staged / name)
            if hashed(staged / name) != entry:
                raise CheckpointError(f"{staged / name} is not what was written (its digest differs)")
        store.publish(attempt, step, manifest.files)
        part = CheckpointShard(manifest.files, manifest.weights)
        origin = CheckpointOrigin(theirs.strategy.name, theirs.resources.workers, other.id)
        saved = store.commit(attempt, step, [part], origin)
        with closing(EventLog(run.events)) as log:
            log.add(StateTakenOver(step=step, run=other.id, weights=saved.weights))


def taken_by(run: RunDir) -> list[StateTakenOver]:
    """Every time that a run was given the state of another one."""
    return [event for event in event_log.read(run.events) if isinstance(event, StateTakenOver)]
