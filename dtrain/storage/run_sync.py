"""The copy of a run's diary, logs and ledgers on remote storage: the supervisor keeps it up, everybody else reads it.

Files that only grow are kept as objects of at most PART_BYTES, named by their offset, of which only the last is written anew.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from functools import cache
from pathlib import Path

from dtrain.common.errors import StorageError, UsageError
from dtrain.common.files import read_at, write_whole
from dtrain.run.event_log import EventLog
from dtrain.run.folder import SILENT_SECONDS, RunDir
from dtrain.run.lock import Lease
from dtrain.spec.job import Job
from dtrain.storage import run_lease
from dtrain.storage.object_store import CHECKPOINTS, ObjectStore, of_run

PART_BYTES = 1 << 18
EVERY_SECONDS = 3.0
JOB = "job.json"
STOP = "stop"


class RunCopy:
    """One run and its copy."""

    def __init__(self, run: RunDir, there: ObjectStore) -> None:
        self._run = run
        self._remote = there
        self._there: dict[str, int] | None = None
        self._claim_at = 0.0

    def push(self) -> None:
        """Copy what has grown since the last time; raises `StorageError`, and then goes on where it was the next time."""
        if self._there is None:
            self._there = self._lengths()
        diary = [self._run.events] if self._run.events.exists() else []
        for path in (*diary, *self._run.append_only_files()):
            name = str(path.relative_to(self._run.path))
            size = path.stat().st_size
            while (done := self._there.get(name, 0)) < size:
                begin = done // PART_BYTES * PART_BYTES
                data = read_at(path, begin, PART_BYTES)
                self._remote.write(_part(name, begin), data)
                self._there[name] = begin + len(data)

    def pull(self) -> None:
        """Bring the run folder up to what is there."""
        self._run.create_folders()
        for name, size in self._lengths().items():
            path = self._run.path / name
            have = path.stat().st_size if path.exists() else 0
            if have >= size:
                continue
            first = have // PART_BYTES * PART_BYTES
            for begin in range(first, size, PART_BYTES):
                data = self._remote.read(_part(name, begin)) or b""
                with open(path, "r+b" if path.exists() else "wb") as file:
                    file.seek(begin)
                    file.write(data)
        supervisor = run_lease.claimed(self._remote)
        if supervisor and supervisor.place != run_lease.place(self._run.path):
            self._run.remote_heartbeat_file.write_text(str(supervisor.time))
        else:
            self._run.remote_heartbeat_file.unlink(missing_ok=True)
        if not self._run.job_file.exists():
            job = self._remote.read(JOB)
            if job is not None:
                write_whole(self._run.job_file, job.decode())

    def announce(self) -> None:
        """A person has started the run: its job, and no request to stop from before."""
        self._remote.write(JOB, self._run.job_file.read_bytes())
        self._remote.delete([STOP] if self._remote.read(STOP) is not None else [])

    def ask_to_stop(self, how: str) -> None:
        """Leave a word for the supervisor."""
        self._remote.write(STOP, how.encode())

    def claim(self, mark: str) -> None:
        """Be the run's supervisor."""
        run_lease.claim(self._remote, mark, self._run.path)
        self._claim_at = time.monotonic() + SILENT_SECONDS / 4

    def release(self) -> None:
        """Nobody supervises the run any more."""
        self._remote.delete([run_lease.CLAIM])

    def hear(self, lease: Lease) -> None:
        """Turn what others left there into what the supervisor looks for in its own folder: a request to stop, and the mark of
        another supervisor, which ends the lease of this one."""
        other = run_lease.claimed(self._remote)
        if other and other.mark != lease.mark:
            lease.file.write_text(other.mark)
        elif time.monotonic() >= self._claim_at:
            self.claim(lease.mark)
        word = self._remote.read(STOP)
        if word is not None:
            self._remote.delete([STOP])
            self._run.stop_request.write_bytes(word)

    def _lengths(self) -> dict[str, int]:
        """Name → bytes of every growing file there."""
        found: dict[str, int] = defaultdict(int)
        for path, size in self._remote.sizes().items():
            name, _, begin = path.rpartition("/")
            if begin.isdigit() and not path.startswith(f"{CHECKPOINTS}/"):
                found[name] = max(found[name], int(begin) + size)
        return dict(found)


class RunSyncer:
    """Keeps the copy of a run up while it is supervised; does nothing for a run without storage."""

    def __init__(self, run: RunDir, job: Job, lease: Lease, log: EventLog) -> None:
        self._mirror = of(run, job)
        self._run = run
        self._lease = lease
        self._log = log
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="dtrain-mirror", daemon=True)

    def start(self, patience_seconds: float) -> None:
        """Take over what is there, and be known as the supervisor; raises `StorageError`, and `UsageError` where another one
        lives longer than that."""
        if self._mirror:
            deadline = time.monotonic() + patience_seconds
            self._mirror.pull()
            while self._run.supervised_elsewhere():
                if time.monotonic() >= deadline:
                    raise UsageError(
                        f"the run {self._run.id} is supervised on another machine",
                        f"See it: dtrain status {self._run.id}",
                    )
                time.sleep(EVERY_SECONDS)
                self._mirror.pull()
            self._mirror.claim(self._lease.mark)
            self._mirror.push()
            self._thread.start()

    def finish(self) -> None:
        """The diary is complete: copy the rest of it."""
        if not self._mirror or not self._thread.ident:
            return
        self._over.set()
        self._thread.join()
        try:
            self._mirror.push()
            if self._lease.held():
                self._mirror.release()
        except StorageError as error:
            print(f"dtrain: the last events and logs are in {self._run.path} only: {error}", file=sys.stderr)

    def _keep(self) -> None:
        assert self._mirror
        failing = False
        while not self._over.wait(EVERY_SECONDS):
            try:
                self._mirror.push()
                self._mirror.hear(self._lease)
            except StorageError as error:
                if not failing:
                    self._log.add("storage_failed", error=error.message)
                failing = True
            else:
                if failing:
                    self._log.add("storage_works")
                failing = False


def of(run: RunDir, job: Job) -> RunCopy | None:
    """The copy of a run, where it has one."""
    return RunCopy(run, of_run(job.storage, run.id)) if job.storage.url else None


@cache
def _reader(path: Path) -> tuple[RunCopy | None, list[float]]:
    """The copy of a run for reading, and when it was read last."""
    run = RunDir(path)
    return of(run, run.job()), [float("-inf")]


def refresh(run: RunDir) -> None:
    """Bring a run folder up to its copy, unless it is supervised from here; says where that cannot be done."""
    mirror, looked = _reader(run.path)
    if not mirror or time.monotonic() - looked[0] < EVERY_SECONDS or run.locked():
        return
    looked[0] = time.monotonic()
    try:
        mirror.pull()
    except StorageError as error:
        print(f"dtrain: what is shown may be old: {error}", file=sys.stderr)


def fetched(root: Path, url: str) -> RunDir:
    """The run at a URL, brought here into a folder of the same name; raises `StorageError` where there is none."""
    run_id = url.rstrip("/").rpartition("/")[2]
    run = RunDir(root.absolute() / run_id)
    if not run.job_file.exists():
        RunCopy(run, ObjectStore(url, {})).pull()
    if not run.job_file.exists():
        raise StorageError(f"there is no run at {url}", "Name its folder: storage.url/run-id.")
    return run


def _part(name: str, begin: int) -> str:
    return f"{name}/{begin:012d}"
