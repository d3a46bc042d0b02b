"""Chooses the checkpoint store of a run."""

from __future__ import annotations

from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.checkpoint.remote import RemoteCheckpointStore
from dtrain.checkpoint.store import CheckpointStore
from dtrain.job.job import Job
from dtrain.record.folder import RunDir
from dtrain.record.lock import Lease
from dtrain.storage.object_store import of_run


def store_of(run: RunDir, job: Job, lease: Lease | None = None) -> CheckpointStore:
    """Where the checkpoints of a run are; `lease` for the supervisor, which alone changes what is committed."""
    if job.storage.url:
        return RemoteCheckpointStore(run.checkpoints, of_run(job.storage, run.id), lease)
    return LocalCheckpointStore(run.checkpoints, lease)
