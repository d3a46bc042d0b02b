"""Supervising a run from its lock to its end, in this process; and the entry point of a submitted run's supervisor."""

from __future__ import annotations

import errno
import gc
import importlib.util
import json
import os
import queue
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dtrain.api.cluster import NodeDraining
from dtrain.api.plan import SHIPPED_ENVIRONMENT, SHIPPED_JOB, LaunchPlan
from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.common import environment, hooks
from dtrain.common.errors import ClusterError, DtrainError, Exit, InternalError, StorageError
from dtrain.common.serde import from_dict
from dtrain.job.job import Job
from dtrain.launch import planner, registry
from dtrain.record import code_snapshot, history
from dtrain.record.event import FORMAT
from dtrain.record.event_log import EventLog
from dtrain.record.events import Event, RunStarted
from dtrain.record.folder import RunDir
from dtrain.record.inspection import parsed_request
from dtrain.record.lock import AlreadySupervised, Lease, LeaseTaken
from dtrain.storage import run_copy, run_sync
from dtrain.storage.object_store import of_run
from dtrain.supervisor.beside.notifications import Notifications
from dtrain.supervisor.beside.tracking import Tracking
from dtrain.supervisor.inbox import SupervisorInbox
from dtrain.supervisor.leaving.stop_request import (
    LeaseLost,
    Notice,
    RunFolderWatcher,
    signal_handlers,
    stop_request,
)
from dtrain.supervisor.nodes.avoidance import plan_without
from dtrain.supervisor.supervisor import log_end, run_attempts

LOCK_SECONDS = 120.0
"""The lock of a supervisor whose machine went down is held for so long by a file server that waits for it."""
CRASH_LOG = "supervisor-crash.log"
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)


def main(path: str) -> int:
    """`python -P -m dtrain supervise RUN`, started inside the cluster on a run folder, or with the job alone."""
    run = RunDir(Path(path))
    try:
        shipped = _unpack(os.environ.pop(environment.SHIPPED, ""))
        if shipped is None or run.job_file.exists():
            return int(supervise(run, LOCK_SECONDS))
        return int(_supervise_apart(run.id, shipped))
    except DtrainError as error:
        print(f"dtrain: {error}", file=sys.stderr)
        return int(error.exit_code)


def _unpack(module: str) -> Job | None:
    """Take over the environment that was sent along in this module; the job in it, if there is one."""
    if not module:
        return None
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ClusterError(f"the cluster did not bring the module {module} that the run was sent with")
    folder = Path(spec.origin).parent
    os.environ.update(json.loads((folder / SHIPPED_ENVIRONMENT).read_text()))
    job = folder / SHIPPED_JOB
    return from_dict(Job, json.loads(job.read_text())) if job.exists() else None


def supervise(
    run: RunDir,
    patience_seconds: float = 0.0,
    launch: LaunchPlan | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Exit:
    """Be the supervisor of a run until it ends; errors become the run's end and are raised again for the terminal.

    `launch` is its plan, where that is known. `on_event` hears every event as it is logged, from several threads."""
    gc.freeze()
    gc.enable()  # which the command line does without
    known = run.log_bytes()
    with _folder_errors(run), run.lock(patience_seconds) as lease:
        ended = history.ended_after(run, known) if lease.waited else None
        if ended is not None:  # by the supervisor that held the lock
            return ended
        if lease.before and (lease.before.may_live or lease.heartbeat):
            run.detach_log()
        run.forget_old_requests()
        tracking, notifications = Tracking(run), Notifications(run)
        log = EventLog(run.events, tracking.hear, notifications.hear, *([on_event] if on_event else []))
        try:
            return _supervise(run, lease, log, tracking, notifications, patience_seconds, launch)
        finally:
            log.close()
            notifications.finish()


def _supervise(
    run: RunDir,
    lease: Lease,
    log: EventLog,
    tracking: Tracking,
    notifications: Notifications,
    patience_seconds: float,
    launch: LaunchPlan | None,
) -> Exit:
    inbox: SupervisorInbox = queue.SimpleQueue()

    def put(notice: Notice) -> None:
        inbox.put(("", notice))

    def on_drain(node: str) -> None:
        inbox.put((node, NodeDraining("it is about to be taken away (injected by dtrain drill)")))

    hooks.install(os.environ.get(environment.HOOKS, ""), run=run, notice=on_drain)
    job = launch.job if launch else run.job()
    sync = run_sync.RunSyncer(run, _requests(put), lambda holder: put(LeaseLost(holder)))
    watcher = RunFolderWatcher(run, lease, put)
    try:
        with signal_handlers(put), _folder_errors(run):
            lease = sync.claim(job, lease, patience_seconds)
            notifications.start(job)
            with code_snapshot.used(run.code, job.folder) as snapshot:
                launch = replace(plan_without(launch or planner.make(job), run), supervisor=lease.number)
            log.add(
                RunStarted(
                    run=run.id, kind=job.kind, target=job.target, strategy=job.strategy.name, cluster=job.cluster.name,
                    workers=launch.workers, nodes=launch.nodes, global_batch=job.train.global_batch, preload=launch.preload,
                    storage=of_run(job.storage, run.id).url if job.storage.url else None, format=FORMAT,
                    code=snapshot.digest if snapshot else "",
                )
            )  # fmt: skip
            sync.start(log)
            tracking.start(job, log)
            watcher.start()
            code = run_attempts(run, launch, registry.cluster_of(job), log, inbox, lease)
            with suppress(StorageError):  # no worker is left that writes: unfinished checkpoints only take space
                LocalCheckpointStore(run.checkpoints, lease).clear_staging()
            shutil.rmtree(run.memory, ignore_errors=True)  # an agent that was killed left it
            sync.confirm()
            return code
    except (LeaseTaken, AlreadySupervised):
        raise  # the event log is another supervisor's
    except DtrainError as error:
        log_end(run, log, error.exit_code, str(error))
        raise
    except Exception as error:
        failure = _internal_error(run, error)
        log_end(run, log, failure.exit_code, str(failure))
        raise failure from error
    finally:
        watcher.stop()
        tracking.finish()
        sync.finish()


def _requests(put: Callable[[Notice], None]) -> dict[str, Callable[[str], None]]:
    """What may be asked of the supervisor through remote storage: the name of the object, and who answers it."""

    def on_stop(how: str) -> None:
        put(stop_request(how))

    def on_inspect(text: str) -> None:
        if request := parsed_request(text):
            put(request)

    return {run_copy.STOP: on_stop, run_copy.INSPECT: on_inspect}


@contextmanager
def _folder_errors(run: RunDir) -> Iterator[None]:
    """An error of the disk, or of a file of the run, is no fault of dtrain's."""
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        if error.errno not in OF_THE_DISK and not name.startswith(str(run.path)):
            raise
        raise StorageError(
            f"cannot use the run folder {run.path}: {error.strerror}",
            "Is the disk full, read-only, or its file server away?",
        ) from error


def _internal_error(run: RunDir, error: Exception) -> InternalError:
    """An error that is dtrain's own fault: its traceback goes into the run folder, its first line to the person."""
    text = "".join(traceback.format_exception(error))
    path = run.logs / CRASH_LOG
    try:
        path.write_text(text)
        hint = f"This is a fault of dtrain, not of your code; the traceback is in {path}."
    except OSError:
        hint = f"This is a fault of dtrain, not of your code: {text}"
    return InternalError(f"the supervisor failed: {type(error).__name__}: {error}", hint)


def _supervise_apart(run_id: str, job: Job) -> Exit:
    """With a run folder of this machine's own, which is removed when all that is in it is on remote storage."""
    above = Path(tempfile.mkdtemp(prefix="dtrain-"))
    run = RunDir(above / run_id)
    run.create_folders()
    run.write_job(replace(job, folder=str(Path.cwd())))
    if copy := run_sync.of(run, job):
        copy.pull_code()
    try:
        return supervise(run)
    finally:
        if _is_elsewhere(run, job):
            shutil.rmtree(above, ignore_errors=True)
        else:
            print(f"dtrain: the run folder stays in {run.path}: not all of it is on remote storage", file=sys.stderr)


def _is_elsewhere(run: RunDir, job: Job) -> bool:
    """Whether all that is in the run folder is on remote storage, too."""
    copy = run_sync.of(run, job)
    with suppress(StorageError):
        return copy is None or copy.is_complete()
    return False
