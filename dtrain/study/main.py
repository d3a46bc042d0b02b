"""The entry point of a study's process, which outlives the terminal that it was started from."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from dtrain.common import environment
from dtrain.common.errors import ClusterError, DtrainError, Exit
from dtrain.launch import registry
from dtrain.record.folder import RunDir
from dtrain.record.lock import locked
from dtrain.study.folder import StudyDir, write_end
from dtrain.study.session import Session

KEPT_WARM = "5m"
"""What trials have imported is kept so long for the next one, unless DTRAIN_WARM says another time."""
LOCK_SECONDS = 10.0


def main(path: str) -> int:
    """`python -P -m dtrain supervise FOLDER`, of a study. A cluster warns with SIGUSR1 before it takes the nodes away."""
    study, asked = StudyDir(Path(path)), list[int]()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *received: asked.append(received[0]))
    os.environ.setdefault(environment.WARM, KEPT_WARM)
    try:
        with locked(study.lock_file, study.id, LOCK_SECONDS):
            study.end_file.unlink(missing_ok=True)  # of before the cluster started it again
            return int(_work(study, asked))
    except DtrainError as error:
        print(f"dtrain: {error}", file=sys.stderr)
        return int(error.exit_code)


def _work(study: StudyDir, asked: list[int]) -> Exit:
    try:
        code, reason = Session(study).run(lambda: bool(asked))
    except DtrainError as error:
        write_end(study, error.exit_code, error.message, error.hint)
        raise
    except OSError as error:
        write_end(study, Exit.GAVE_UP, f"the file system says: {error}")
        raise ClusterError(f"the file system says: {error}") from error
    except Exception as error:
        write_end(
            study, Exit.INTERNAL, f"{type(error).__name__}: {error}", f"This is a fault of dtrain: see {study.log}"
        )
        raise
    if not (code is Exit.RESUMABLE and signal.SIGUSR1 in asked and study.tune.packing and _queued_again(study)):
        write_end(study, code, reason)
    return code


def _queued_again(study: StudyDir) -> bool:
    """Whether the cluster, which takes the nodes away, starts the study again later."""
    try:
        print(registry.cluster_of(study.job).requeue(RunDir(study.path), ()), flush=True)
    except ClusterError as error:
        print(f"dtrain: not queued again: {error}", file=sys.stderr)
        return False
    return True
