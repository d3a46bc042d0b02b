"""Keeping the copy of a run up to date while it is supervised, and reading the copy from elsewhere."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from dtrain.common.errors import StorageError, UsageError
from dtrain.common.files import is_file_name
from dtrain.job.job import Job
from dtrain.record import folder
from dtrain.record.event_log import EventLog
from dtrain.record.events import StorageFailed, StorageWorks
from dtrain.record.folder import RunDir
from dtrain.record.lock import AlreadySupervised, Lease, LeaseTaken
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore, of_run
from dtrain.storage.run_copy import MOST_WRITES, RunCopy
from dtrain.storage.run_lease import RunClaim

EVERY_SECONDS = 3.0


class ClaimedCopy:
    """The copy of a run whose supervisor this is, as its lease sees it."""

    def __init__(self, run: RunDir, store: ObjectStore, claim: RunClaim) -> None:
        self._store = store
        self.claim = claim
        self.copy = RunCopy(run, store, claim.number)

    def check(self) -> None:
        """Raise `LeaseTaken` if another supervisor has claimed the run since, `StorageError` if that cannot be known."""
        self.claim.check()

    def push_history(self) -> None:
        """Copy the event log and the ledgers; raise `StorageError` if that fails."""
        self.copy.push_history()

    def remove(self, folder: str = "") -> None:
        """Delete what is in a folder of the run there, and give the run free; raises `StorageError`."""
        self._store.delete(name for name in self._store.sizes(folder) if name != self.claim.name)
        self.claim.release() if folder else self._store.delete([self.claim.name])


def claimed(run: RunDir, job: Job, lease: Lease, patience_seconds: float = 0.0) -> ClaimedCopy | None:
    """Be the supervisor of a run on its remote storage, too; None: it has none. Raises `StorageError`, and `AlreadySupervised` if
    another supervisor lives there longer than that."""
    if not job.storage.url:
        return None
    store, deadline = of_run(job.storage, run.id), time.monotonic() + patience_seconds
    while not (claim := run_lease.take(store, lease)):
        if time.monotonic() >= deadline:
            raise AlreadySupervised(
                f"the run {run.id} is supervised on another machine", f"See it: dtrain status {run.id}"
            )
        time.sleep(EVERY_SECONDS)
    return ClaimedCopy(run, store, claim)


class RunSyncer:
    """Keeps the copy of a run up to date while it is supervised; does nothing for a run without storage.

    One thread copies files, another one renews the claim and looks for requests, so that a slow copy never makes a living
    supervisor look dead. Who has lost the claim writes nothing more."""

    def __init__(
        self, run: RunDir, on_request: Mapping[str, Callable[[str], None]], on_lease_lost: Callable[[str], None]
    ) -> None:
        self._run = run
        self._on_request = on_request
        self._on_lease_lost = on_lease_lost
        self._there: ClaimedCopy | None = None
        self._log: EventLog | None = None
        self._pushed, self._released = threading.Event(), threading.Event()
        """Set when this supervisor copies, and renews its claim, no more."""
        self._failing: set[str] = set()
        self._reporting = threading.Lock()
        self._threads: dict[threading.Event, threading.Thread] = {}

    def claim(self, job: Job, lease: Lease, patience_seconds: float) -> Lease:
        """Be known as the supervisor, and take over what is there; the lease that holds there, too. Raises as `claimed` does."""
        self._there = claimed(self._run, job, lease, patience_seconds)
        if not self._there:
            return lease
        self._begin(self._keep_claim, self._released, "dtrain-remote-lease")
        self._there.copy.pull()
        return dataclasses.replace(lease, there=self._there)

    def start(self, log: EventLog) -> None:
        """Copy what the event log says of this supervisor's begin, and then what follows; raises `StorageError`."""
        self._log = log
        if self._there:
            self._there.copy.push()
            self._begin(self._push, self._pushed, "dtrain-sync")

    def confirm(self) -> None:
        """Copy what the event log says of the end, and raise `LeaseTaken` if another supervisor began before that: it may not have read
        it. Storage that does not answer says nothing."""
        with suppress(StorageError):
            if self._there:
                self._there.copy.push()
                self._there.check()

    def finish(self) -> None:
        """The event log is complete: copy the rest of it, and give the run free."""
        if not self._there:
            return
        try:
            self._end(self._pushed)
            self._there.check()
            if self._log:
                self._there.copy.push()
            self._end(self._released)
            self._there.claim.release()
        except LeaseTaken:
            return
        except StorageError as error:
            print(f"dtrain: the last events and logs are in {self._run.path} only: {error}", file=sys.stderr)
        finally:
            self._end(self._released)

    def _begin(self, action: Callable[[ClaimedCopy], None], over: threading.Event, name: str) -> None:
        self._threads[over] = threading.Thread(target=self._repeat, args=(action, over), name=name, daemon=True)
        self._threads[over].start()

    def _end(self, over: threading.Event) -> None:
        over.set()
        if thread := self._threads.pop(over, None):
            thread.join()

    def _repeat(self, action: Callable[[ClaimedCopy], None], over: threading.Event) -> None:
        assert self._there
        while not over.wait(EVERY_SECONDS):
            try:
                self._there.check()
                action(self._there)
            except LeaseTaken as error:
                self._on_lease_lost(error.holder)
                return
            except StorageError as error:
                self._report(action.__name__, error.message)
            except (OSError, ValueError, TypeError) as error:  # a file that was deleted, a request that cannot be read
                self._report(action.__name__, f"{type(error).__name__}: {error}")
            else:
                self._report(action.__name__, "")

    def _push(self, there: ClaimedCopy) -> None:
        there.copy.push(MOST_WRITES)

    def _keep_claim(self, there: ClaimedCopy) -> None:
        there.claim.renew()
        for name, answer in self._on_request.items():
            request = there.copy.take_request(name)
            if request is not None:
                answer(request)

    def _report(self, action: str, error: str) -> None:
        """Log the first failure in a row of either thread, and that both work again."""
        if not self._log:
            return
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
    try:
        copy, looked = _reader(run.path)
    except UsageError:  # its job cannot be read: nobody knows where a copy is
        return
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
    if not is_file_name(run_id):
        raise StorageError(f"{url} names no run", "Name its folder: storage.url/run-id.")
    run = RunDir(root.absolute() / run_id)
    if not run.job_file.exists():
        there = RunCopy(run, ObjectStore(url, {}))
        if not there.exists():
            raise StorageError(f"there is no run at {url}", "Name its folder: storage.url/run-id.")
        there.pull()
    return run


def find(runs: Path, name: str) -> RunDir:
    """The run that was meant by an id, a prefix, a path, a URL or `last`, as it is now; raises `RunNotFound`."""
    chosen = fetched(runs, name) if "://" in name else folder.find(runs, name)
    refresh(chosen)
    return chosen
