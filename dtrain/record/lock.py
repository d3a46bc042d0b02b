"""The lock and the lease of the one supervisor of a run."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dtrain.common.errors import ClusterError, UsageError

POLL_SECONDS = 0.2
SILENT_SECONDS = 60.0
"""A supervisor that has not been heard of for so long is gone."""
SETTLE_SECONDS = 1.0
ATTEMPTS = 20
"""Reads of a lock file before an error of the file system counts."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of flock on a file system without locks (Lustre without `-o flock`, NFS without lockd)."""


@dataclass(frozen=True)
class Lease:
    """The right to supervise a run; a machine that is cut off can lose its lock without noticing."""

    file: Path
    mark: str
    """Written into the lock file by this supervisor alone."""
    heartbeat: bool = False
    """The file system has no locks: the age of the lock file stands for the lock."""

    def beat(self) -> None:
        """Keep the lock file young on a file system without locks; raises `OSError`."""
        if self.heartbeat:
            os.utime(self.file)

    def holder(self) -> str:
        """The mark of the run's supervisor; raises `OSError` if the file cannot be read."""
        return self.file.read_text()

    def held(self) -> bool:
        """Whether nobody else has become the run's supervisor meanwhile; a file that cannot be read says nothing."""
        try:
            return self.holder() == self.mark
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def check(self) -> None:
        """Raises `ClusterError` if another supervisor has taken over the run."""
        for _ in range(ATTEMPTS):
            try:
                holder = self.holder()
            except FileNotFoundError:
                holder = ""
            except OSError:
                time.sleep(POLL_SECONDS)
                continue
            if holder != self.mark:
                raise taken_over(holder)
            return


class LeaseTaken(ClusterError):
    """This process is not the run's supervisor any more, and must not write to it."""


def taken_over(holder: str) -> LeaseTaken:
    """The error for a run that another supervisor has taken over."""
    return LeaseTaken(
        f"another supervisor has taken over this run: {holder.strip() or 'unknown'}", "This machine was taken for lost."
    )


@contextmanager
def locked(path: Path, run_id: str, patience_seconds: float = 0.0) -> Iterator[Lease]:
    """Be the run's only supervisor; raises `UsageError` if another one lives longer than that."""
    deadline = time.monotonic() + patience_seconds
    mark = f"process {os.getpid()} on {os.uname().nodename}, {os.urandom(4).hex()}\n"
    with open(path, "a+") as file:
        while (heartbeat := _try_lock(file)) is None:
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UsageError(
                    f"the run {run_id} is already supervised by {holder}", f"See it: dtrain status {run_id}"
                )
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(mark)
        file.flush()
        if heartbeat:
            _settle(path, mark)
        try:
            yield Lease(path, mark, heartbeat)
        finally:
            file.truncate(0)


def is_locked(path: Path) -> bool:
    """Whether a supervisor holds the lock, as far as this machine can see."""
    try:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError as error:
                return error.errno in NO_LOCKS and _beats(file)
            return False
    except OSError:
        return False


def _try_lock(file: IO[str]) -> bool | None:
    """True: the file system has no locks and nobody's heartbeat is in the file; False: locked; None: somebody else's."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            where = f"{file.name} (on the file system mounted at {_mount(Path(file.name))})"
            raise UsageError(
                f"cannot lock {where}: {error.strerror}", "Choose a folder on another file system with --runs."
            ) from error
        return None if _beats(file) else True
    return False


def _beats(file: IO[str]) -> bool:
    """Whether a supervisor's mark is in the file and the file is younger than the silence that ends a supervisor.

    Ages are compared by the file server's own clock: that of a file made there now."""
    facts = os.fstat(file.fileno())
    if not facts.st_size:
        return False
    probe = Path(f"{file.name}.{os.getpid()}.{os.urandom(2).hex()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - facts.st_mtime < SILENT_SECONDS
    finally:
        probe.unlink(missing_ok=True)


def _settle(path: Path, mark: str) -> None:
    """Without locks two supervisors may write at one moment: the one whose mark stays has the run."""
    time.sleep(SETTLE_SECONDS)
    holder = path.read_text()
    if holder != mark:
        raise UsageError(f"the run is already supervised by {holder.strip() or 'another process'}")


def _mount(path: Path) -> Path:
    """The mount point that a path is on."""
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return path
