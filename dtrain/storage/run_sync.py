"""The copy of a run's event log, logs and ledgers on remote storage: the supervisor keeps it up to date, everyone else reads it.

Files that only grow are kept as objects of at most PART_BYTES, named by their offset, of which only the last is written anew.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from dtrain.common.errors import StorageError, UsageError
from dtrain.common.files import read_at, write_whole
from dtrain.job.job import Job
from dtrain.record import folder, log_retention
from dtrain.record.event_log import EventLog
from dtrain.record.events import StorageFailed, StorageWorks
from dtrain.record.folder import RunDir
from dtrain.record.lock import SILENT_SECONDS, Lease
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore, of_run

PART_BYTES = 1 << 18
EVERY_SECONDS = 3.0
MOST_WRITES = 60
"""Logs and ledgers written every EVERY_SECONDS at most, whatever the number of ranks: 20 a second. Those of many ranks take turns."""
COPIED = re.compile(
    r"events\.jsonl|logs/[A-Za-z0-9_-][A-Za-z0-9._-]*\.log|ledger/(gradients-)?attempt-\d+-rank-\d+\.bin"
)
"""Files of a run that are kept there: whoever can write to a bucket must not choose other files here."""
JOB = "job.json"
STOP = "stop"
INSPECT = "inspect"


class RunCopy:
    """A run and its copy on remote storage."""

    def __init__(self, run: RunDir, there: ObjectStore) -> None:
        self._run = run
        self._store = there
        self._copied: dict[str, int] | None = None
        self._last_pushed = ""
        self._forgotten: dict[str, int] = {}
        """Name of a log → how far its middle was deleted there."""
        self._number = 0
        """Number of this supervisor's claim."""
        self._claim_at = 0.0

    def push(self, most_writes: int | None = None) -> None:
        """Copy what has grown since the last time: the event log, then the other files in turn, one part of each, until all
        is there or this number of objects is written. Raises `StorageError`; the next call goes on where this one ended."""
        if self._copied is None:
            self._copied = self._lengths()
        while self._run.events.exists() and self._push_part(self._run.events):
            pass
        files = self._run.append_only_files()
        first = next((number for number, path in enumerate(files) if str(path) > self._last_pushed), 0)
        waiting = deque(files[first:] + files[:first])
        writes = 0
        while waiting and (most_writes is None or writes < most_writes):
            path = waiting.popleft()
            if self._push_part(path):
                writes += 1
                self._last_pushed = str(path)
                waiting.append(path)

    def _push_part(self, path: Path) -> bool:
        """Copy the next part of a file; False: all of it is there."""
        assert self._copied is not None
        name = str(path.relative_to(self._run.path))
        done = self._copied.get(name, 0)
        size = path.stat().st_size
        if done >= size:
            return False
        if path.parent == self._run.logs and size > log_retention.HEAD_BYTES:
            done = max(done, self._forget(name, path))
        begin = done // PART_BYTES * PART_BYTES
        data = read_at(path, begin, PART_BYTES)
        self._store.write(_part(name, begin), data)
        self._copied[name] = begin + len(data)
        return True

    def _forget(self, name: str, path: Path) -> int:
        """Delete the parts of a log whose middle was removed here; where its newer part begins."""
        removed = log_retention.hole(path)
        known = self._forgotten.get(name, removed.start)
        first = -(-known // PART_BYTES) * PART_BYTES
        whole = range(first, removed.stop - PART_BYTES + 1, PART_BYTES)[:MOST_WRITES]
        if whole:
            self._store.delete([_part(name, begin) for begin in whole])
            self._forgotten[name] = whole[-1] + PART_BYTES
        return removed.stop

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
                data = self._store.read(_part(name, begin)) or b""
                with open(path, "r+b" if path.exists() else "wb") as file:
                    file.seek(begin)
                    file.write(data)
        supervisor = run_lease.claimed(self._store)
        if supervisor and supervisor.place != run_lease.place(self._run.path):
            self._run.remote_heartbeat_file.write_text(str(time.time() - self._claim_age()))
        else:
            self._run.remote_heartbeat_file.unlink(missing_ok=True)
        if not self._run.job_file.exists():
            job = self._store.read(JOB)
            if job is not None:
                write_whole(self._run.job_file, job.decode())

    def _claim_age(self) -> float:
        """Seconds, by the store's clock; by this machine's for somebody who may only read there."""
        try:
            return run_lease.age_seconds(self._store)
        except StorageError:
            return time.time() - run_lease.renewed(self._store)

    def announce(self) -> None:
        """A person has started the run: its job, and no request to stop from before."""
        self._store.write(JOB, self._run.job_file.read_bytes())
        self._store.delete([STOP] if self._store.read(STOP) is not None else [])

    def ask_to_stop(self, how: str) -> None:
        """Leave a stop request for the supervisor."""
        self._store.write(STOP, how.encode())

    def ask_to_inspect(self, request: str) -> None:
        """Leave a request to look into the workers for the supervisor."""
        self._store.write(INSPECT, request.encode())

    def claim(self, mark: str) -> bool:
        """Be the run's supervisor; False: another one lives on another machine, or was faster."""
        newest = run_lease.newest(self._store)
        holder = run_lease.claimed(self._store)
        elsewhere = holder and holder.place != run_lease.place(self._run.path)
        if elsewhere and run_lease.age_seconds(self._store) < SILENT_SECONDS:
            return False
        self._number = run_lease.claim(self._store, mark, self._run.path, above=newest) or 0
        self._claim_at = time.monotonic() + SILENT_SECONDS / 4
        return bool(self._number)

    def release(self) -> None:
        """Nobody supervises the run any more."""
        run_lease.renew(self._store, "", self._run.path, self._number)

    def holder(self) -> str | None:
        """The mark of the supervisor that claims the run; None if nobody does."""
        claimed = run_lease.claimed(self._store)
        return claimed.mark if claimed else None

    def renew(self, mark: str) -> None:
        """Claim the run anew when the claim is about to be taken for a dead supervisor's."""
        if time.monotonic() >= self._claim_at:
            run_lease.renew(self._store, mark, self._run.path, self._number)
            self._claim_at = time.monotonic() + SILENT_SECONDS / 4

    def take_request(self, name: str) -> str | None:
        """Take a request that was made elsewhere, once."""
        text = self._store.read(name)
        if text is None:
            return None
        self._store.delete([name])
        return text.decode()

    def _lengths(self) -> dict[str, int]:
        """Name → bytes of every growing file there."""
        found: dict[str, int] = defaultdict(int)
        for path, size in self._store.sizes().items():
            name, _, begin = path.rpartition("/")
            if begin.isdigit() and COPIED.fullmatch(name):
                found[name] = max(found[name], int(begin) + size)
        return dict(found)


class RunSyncer:
    """Keeps the copy of a run up to date while it is supervised; does nothing for a run without storage.

    One thread copies files, another one renews the claim and looks for requests, so that a slow copy never makes a living
    supervisor look dead."""

    def __init__(
        self,
        run: RunDir,
        job: Job,
        lease: Lease,
        log: EventLog,
        *,
        on_request: Mapping[str, Callable[[str], None]],
        on_lease_lost: Callable[[str], None],
    ) -> None:
        self._copy = of(run, job)
        self._run = run
        self._lease = lease
        self._log = log
        self._on_request = on_request
        self._on_lease_lost = on_lease_lost
        self._lost = False
        self._over = threading.Event()
        self._failing: set[str] = set()
        self._reporting = threading.Lock()
        self._threads = [
            threading.Thread(target=self._repeat, args=(self._push,), name="dtrain-sync", daemon=True),
            threading.Thread(target=self._repeat, args=(self._keep_lease,), name="dtrain-remote-lease", daemon=True),
        ]

    def start(self, patience_seconds: float) -> None:
        """Take over what is there, and be known as the supervisor; raises `StorageError`, and `UsageError` if another
        supervisor lives longer than that."""
        if not self._copy:
            return
        deadline = time.monotonic() + patience_seconds
        self._copy.pull()
        while not self._copy.claim(self._lease.mark):
            if time.monotonic() >= deadline:
                raise UsageError(
                    f"the run {self._run.id} is supervised on another machine", f"See it: dtrain status {self._run.id}"
                )
            time.sleep(EVERY_SECONDS)
            self._copy.pull()
        self._copy.push()
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """The event log is complete: copy the rest of it, and give the run free."""
        if not self._copy or not self._threads[0].ident:
            return
        self._over.set()
        for thread in self._threads:
            thread.join()
        try:
            self._copy.push()
            if not self._lost and self._lease.held():
                self._copy.release()
        except StorageError as error:
            print(f"dtrain: the last events and logs are in {self._run.path} only: {error}", file=sys.stderr)

    def _repeat(self, action: Callable[[RunCopy], None]) -> None:
        assert self._copy
        while not self._over.wait(EVERY_SECONDS):
            try:
                action(self._copy)
            except StorageError as error:
                self._report(action.__name__, error.message)
            except (OSError, ValueError, TypeError) as error:  # a file that was deleted, a claim that was cut short
                self._report(action.__name__, f"{type(error).__name__}: {error}")
            else:
                self._report(action.__name__, "")

    def _push(self, copy: RunCopy) -> None:
        copy.push(MOST_WRITES)

    def _keep_lease(self, copy: RunCopy) -> None:
        holder = copy.holder()
        if holder and holder != self._lease.mark:
            self._lost = True
            self._over.set()
            self._on_lease_lost(holder)
            return
        copy.renew(self._lease.mark)
        for name, answer in self._on_request.items():
            request = copy.take_request(name)
            if request is not None:
                answer(request)

    def _report(self, action: str, error: str) -> None:
        """Log the first failure in a row of either thread, and that both work again."""
        with self._reporting:
            before = bool(self._failing)
            if error:
                self._failing.add(action)
                if not before:
                    self._log.add(StorageFailed(error=error))
            else:
                self._failing.discard(action)
                if before and not self._failing:
                    self._log.add(StorageWorks())


def of(run: RunDir, job: Job) -> RunCopy | None:
    """The copy of a run, if it has one."""
    return RunCopy(run, of_run(job.storage, run.id)) if job.storage.url else None


@cache
def _reader(path: Path) -> tuple[RunCopy | None, list[float]]:
    """The copy of a run for reading, and when it was read last."""
    run = RunDir(path)
    return of(run, run.job()), [float("-inf")]


def refresh(run: RunDir) -> None:
    """Bring a run folder up to its copy, unless it is supervised from here; says if that cannot be done."""
    copy, looked = _reader(run.path)
    if not copy or time.monotonic() - looked[0] < EVERY_SECONDS or run.locked():
        return
    looked[0] = time.monotonic()
    try:
        copy.pull()
    except StorageError as error:
        print(f"dtrain: what is shown may be old: {error}", file=sys.stderr)


def fetched(root: Path, url: str) -> RunDir:
    """The run at a URL, brought here into a folder of the same name; raises `StorageError` if there is none."""
    run_id = url.rstrip("/").rpartition("/")[2]
    run = RunDir(root.absolute() / run_id)
    if not run.job_file.exists():
        RunCopy(run, ObjectStore(url, {})).pull()
    if not run.job_file.exists():
        raise StorageError(f"there is no run at {url}", "Name its folder: storage.url/run-id.")
    return run


def find(runs: Path, name: str) -> RunDir:
    """The run that was meant by an id, a prefix, a path, a URL or `last`, as it is now; raises `RunNotFound`."""
    chosen = fetched(runs, name) if "://" in name else folder.find(runs, name)
    refresh(chosen)
    return chosen


def _part(name: str, begin: int) -> str:
    return f"{name}/{begin:012d}"
