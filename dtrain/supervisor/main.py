"""The supervisor of a submitted run, started inside the cluster on a run folder, or with the job alone where that is not there."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from dtrain.api.plan import SHIPPED_JOB
from dtrain.common.errors import DtrainError, Exit, StorageError
from dtrain.common.serde import from_dict
from dtrain.run.folder import RunDir
from dtrain.spec.job import Job
from dtrain.storage import run_sync
from dtrain.supervisor.supervisor import supervise

LOCK_SECONDS = 120.0
"""The lock of a supervisor whose machine went down is held for so long by a file server that waits for it."""


def main(path: str) -> int:
    """`python -P -m dtrain supervise RUN`."""
    run = RunDir(Path(path))
    shipped = os.environ.pop(SHIPPED_JOB, None)
    try:
        if not shipped or run.job_file.exists():
            return int(supervise(run, LOCK_SECONDS))
        return int(_supervise_apart(run.id, from_dict(Job, json.loads(shipped))))
    except DtrainError as error:
        print(f"dtrain: {error}", file=sys.stderr)
        return int(error.exit_code)


def _supervise_apart(run_id: str, job: Job) -> Exit:
    """With a run folder of this machine's own, which goes when all that is in it is on remote storage."""
    above = Path(tempfile.mkdtemp(prefix="dtrain-"))
    run = RunDir(above / run_id)
    run.create_folders()
    run.write_job(replace(job, folder=str(Path.cwd())))
    try:
        return supervise(run)
    finally:
        copy = run_sync.of(run, job)
        try:
            if copy:
                copy.push()
            shutil.rmtree(above, ignore_errors=True)
        except StorageError as error:
            print(f"dtrain: the run folder stays in {run.path}: {error}", file=sys.stderr)
