"""Which checkpoint store a run uses."""

from __future__ import annotations

from dtrain.checkpoint.local import CheckpointStore
from dtrain.checkpoint.remote import RemoteCheckpoints
from dtrain.checkpoint.store import Checkpoints
from dtrain.run.folder import RunDir
from dtrain.spec.job import Job
from dtrain.storage.object_store import of_run


def store_of(run: RunDir, job: Job, mark: str = "") -> Checkpoints:
    """Where the checkpoints of a run are."""
    if job.storage.url:
        return RemoteCheckpoints(run.checkpoints, of_run(job.storage, run.id), mark)
    return CheckpointStore(run.checkpoints)
