"""The lock and the lease of the one supervisor of a run.

Each supervisor makes a claim: a file whose name is a number that no other one has, the next one. The highest number has the run. Each
touches its own claim alone, so one that was held up undoes nothing of its successor's, also on a file system without locks, where a
claim stands for the lock as long as it is young.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol

from dtrain.common.errors import ClusterError, StorageError, UsageError, require_format
from dtrain.common.files import PRIVATE_FILE, PRIVATE_FOLDER, folder_clock
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import boot_id

POLL_SECONDS = 0.2
SILENT_SECONDS = 60.0
"""A supervisor that has not been heard of for so long is gone."""
READERS_SECONDS = 10.0
"""For those who only look whether the lock is held to let go of it."""
LOOK_SECONDS = 0.005
ATTEMPTS = 20
"""Reads of a claim before an error of the file system counts."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of flock on a file system without locks (Lustre without `-o flock`, NFS without lockd)."""
CLAIMS = "supervisors"
"""Folder of the claims, beside the lock file."""
FORMAT = 2
"""Format number of a claim, on its third line; 1, or none: dtrain 0.1.0."""
LEFT = "left\n"
"""Text of a claim whose supervisor has released the run."""
SOMEBODY = "another process"
NOBODY = "nobody"
"""Has a run whose folder was deleted while it went on."""


class RemoteClaim(Protocol):
    """A supervisor's claim of a run that is kept on remote storage, too."""

    def check(self) -> None:
        """Raise `LeaseTaken` if another supervisor has claimed the run there since, `StorageError` if that cannot be known."""

    def push_history(self) -> None:
        """Copy what explains a checkpoint, the event log and the ledgers; raise `StorageError` if that fails."""


@dataclass(frozen=True)
class Predecessor:
    """A supervisor that never gave the run free."""

    mark: str
    boot: str
    """See `boot_id`; '' if it is not known."""

    @property
    def may_live(self) -> bool:
        """Whether it may be held up and go on later: the kernel that has given its lock to us is not the one that it runs on."""
        return self.boot != boot_id()


@dataclass(frozen=True)
class Lease:
    """The right to supervise a run; a machine that is cut off can lose its lock without noticing."""

    claims: Path
    """Folder of the claims."""
    number: int
    """Of this supervisor's claim."""
    mark: str
    """Of this supervisor alone, for people too."""
    heartbeat: bool = False
    """The file system has no locks: the age of the claim stands for the lock."""
    waited: bool = False
    """Another supervisor had the lock when this one asked for it."""
    before: Predecessor | None = None
    """The supervisor of before, if it did not give the run free."""
    there: RemoteClaim | None = None

    def beat(self) -> None:
        """Keep the claim young on a file system without locks; raises `OSError`."""
        if self.heartbeat:
            with suppress(FileNotFoundError):  # a successor deletes it
                os.utime(claim_file(self.claims, self.number))

    def successor(self) -> str | None:
        """The mark of the supervisor that has the run now; None: this one has it. Raises `OSError` if that cannot be read."""
        return successor(self.claims, self.number)

    def check(self, *, unknown_is_held: bool = False) -> None:
        """Raise `LeaseTaken` if another supervisor has taken over the run, and `StorageError` if that cannot be known."""
        try:
            self._check()
        except StorageError:
            if not unknown_is_held:
                raise

    def _check(self) -> None:
        problem: OSError | None = None
        for _ in range(ATTEMPTS):
            try:
                holder = self.successor()
            except OSError as error:
                problem = error
                time.sleep(POLL_SECONDS)
                continue
            if holder is not None:
                raise taken_over(holder)
            if self.there:
                self.there.check()
            return
        raise StorageError(f"cannot read {self.claims}: {problem}")

    def push_history(self) -> None:
        """Copy what explains a checkpoint to remote storage, if the run is kept there, too; raise `StorageError` if that fails."""
        if self.there:
            self.there.push_history()


class AlreadySupervised(UsageError):
    """Another supervisor has the run; this process was never its supervisor."""


class LeaseTaken(ClusterError):
    """This process is not the run's supervisor any more, and must not write to it."""

    def __init__(self, message: str, hint: str = "", holder: str = "") -> None:
        super().__init__(message, hint)
        self.holder = holder


def taken_over(holder: str) -> LeaseTaken:
    """The error for a run that another supervisor has taken over."""
    holder = holder.strip() or SOMEBODY
    if holder == NOBODY:
        return LeaseTaken(
            "the folder of this run was deleted while it went on",
            "What was saved nowhere else is lost: start it again.",
            holder,
        )
    return LeaseTaken(
        f"another supervisor has taken over this run: {holder}", "This machine was taken for lost.", holder
    )


def claim_file(claims: Path, number: int) -> Path:
    """The claim of this number."""
    return claims / f"{number:08d}"


def newest_claim(claims: Path) -> int:
    """The number of the newest claim; 0 if there was never one."""
    return max((int(path.name) for path in claims.glob("*") if path.name.isdigit()), default=0)


def successor(claims: Path, number: int) -> str | None:
    """Who came after the supervisor with this number, or that it left; None: it has the run. Raises `OSError` if that cannot be read."""
    try:
        own = claim_file(claims, number).read_text(errors="replace")
    except FileNotFoundError:  # a successor deletes it, or somebody the run
        return last_mark(claims) or (SOMEBODY if claims.is_dir() else NOBODY)
    if claim_file(claims, number + 1).exists():
        return last_mark(claims) or SOMEBODY
    return SOMEBODY if own == LEFT else None


def last_mark(claims: Path) -> str:
    """The mark of the supervisor that has the run, or had it last and never gave it free; '' if there is none."""
    try:
        return _mark(_text(claim_file(claims, newest_claim(claims))))
    except OSError:
        return ""


@contextmanager
def locked(path: Path, run_id: str, patience_seconds: float = 0.0) -> Iterator[Lease]:
    """Be the run's only supervisor; raises `AlreadySupervised` if another one lives longer than that."""
    deadline, waited = time.monotonic() + patience_seconds, False
    claims = path.with_name(CLAIMS)
    claims.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    mark = f"process {os.getpid()} on {os.uname().nodename}, {os.urandom(4).hex()}"
    with open(path, "a+", opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE)) as file:
        while not (lease := _taken(file, claims, mark)):
            if time.monotonic() >= deadline:
                holder = last_mark(claims) or SOMEBODY
                raise AlreadySupervised(
                    f"the run {run_id} is already supervised by {holder}", f"See it: dtrain status {run_id}"
                )
            waited = True
            time.sleep(POLL_SECONDS)
        try:
            yield replace(lease, waited=waited)
        finally:
            with suppress(OSError):  # of a run that was removed
                claim_file(claims, lease.number).write_text(LEFT)


def _taken(file: IO[str], claims: Path, mark: str) -> Lease | None:
    """The lock, and a claim with the next number; None: somebody else has the run, or was faster."""
    heartbeat = _try_lock(file)
    if heartbeat is None:
        return None
    number = newest_claim(claims)
    text = _text(claim_file(claims, number))
    lines = text.split("\n")
    require_format(
        str(claim_file(claims, number)), int(lines[2]) if len(lines) > 2 and lines[2].isdigit() else 1, FORMAT
    )
    if heartbeat and text != LEFT and _is_young(claim_file(claims, number)):
        return None
    try:
        _write_new(claim_file(claims, number + 1), f"{mark}\n{boot_id()}\n{FORMAT}\n")
    except FileExistsError:
        return None
    if (
        newest_claim(claims) != number + 1
    ):  # this one was held up: others made the same number, then a higher one, and deleted it
        claim_file(claims, number + 1).unlink(missing_ok=True)
        return None
    for older in sorted(path for path in claims.iterdir() if path.name.isdigit() and int(path.name) <= number):
        older.unlink(missing_ok=True)
    before = Predecessor(_mark(text), lines[1].strip() if len(lines) > 1 else "") if _mark(text) else None
    return Lease(claims, number + 1, mark, heartbeat, before=before)


def is_locked(path: Path) -> bool:
    """Whether a supervisor holds the lock, as far as this machine can see."""
    try:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError as error:
                claims = path.with_name(CLAIMS)
                newest = claim_file(claims, newest_claim(claims))
                return error.errno in NO_LOCKS and _text(newest) != LEFT and _is_young(newest)
            return False
    except OSError:
        return False


def _try_lock(file: IO[str]) -> bool | None:
    """False: it is locked; True: the file system has no locks; None: another supervisor has it."""
    deadline = time.monotonic() + READERS_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            if not _held_by_readers(file):
                return None
            time.sleep(LOOK_SECONDS)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return True
            where = f"{file.name} (on the file system mounted at {_mount(Path(file.name))})"
            raise UsageError(
                f"cannot lock {where}: {error.strerror}", "Choose a folder on another file system with --runs."
            ) from error
    return None


def _held_by_readers(file: IO[str]) -> bool:
    """Whether nobody holds the lock but those who look for a moment whether somebody does: they share it."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _is_young(claim: Path) -> bool:
    """Whether a claim was made or touched lately, by the file server's own clock."""
    try:
        return folder_clock(claim.parent) - claim.stat().st_mtime < SILENT_SECONDS
    except FileNotFoundError:
        return False


def _write_new(path: Path, text: str) -> None:
    """Make a file with this content at once; raises `FileExistsError`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    aside.write_text(text)
    try:
        os.link(aside, path)
    except FileExistsError:
        if aside.stat().st_nlink != 2:  # a file server that lost the first answer says so of our own link
            raise
    except OSError:  # no hard links here
        with open(path, "x") as file:
            file.write(text)
    finally:
        aside.unlink()


def _text(claim: Path) -> str:
    try:
        return claim.read_text(errors="replace")
    except FileNotFoundError:
        return LEFT


def _mark(text: str) -> str:
    """In a claim; '' if its supervisor has left."""
    return "" if text == LEFT else text.partition("\n")[0]


def _mount(path: Path) -> Path:
    """The mount point that a path is on."""
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return path
