"""The lock of a run tells a living supervisor from a file system that has no locks or does not answer for a moment."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dtrain.common.errors import UsageError
from dtrain.record import lock
from dtrain.record.event_log import EventLog, read
from dtrain.record.events import UserWarned
from dtrain.record.folder import RunDir
from dtrain.record.lock import AlreadySupervised, LeaseTaken, claim_file, is_locked, locked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_file: Any, _how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refused)


def silence(claims: Path) -> None:
    """Nobody has been heard of for long."""
    for claim in claims.iterdir():
        os.utime(claim, (0, 0))


def test_a_second_supervisor_is_refused(path: Path) -> None:
    with locked(path, "a-run") as lease:
        assert is_locked(path)
        with (
            pytest.raises(AlreadySupervised, match=f"already supervised by process {os.getpid()}"),
            locked(path, "a-run"),
        ):
            pass
        lease.check()
    assert not is_locked(path)


def test_whether_one_waited_for_another_supervisor_is_known(path: Path) -> None:
    with locked(path, "a-run", patience_seconds=10) as lease:
        assert not lease.waited
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(path, "a-run"):
            held.set()
            assert released.wait(10)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(hold)
        assert held.wait(10)
        threading.Timer(0.3, released.set).start()
        with locked(path, "a-run", patience_seconds=10) as lease:
            assert lease.waited
        first.result()


def test_those_who_only_look_keep_no_supervisor_from_its_lock(path: Path) -> None:
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            is_locked(path)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(look)
        try:
            for _ in range(200):
                with locked(path, "a-run"):
                    pass
        finally:
            over.set()


@pytest.mark.usefixtures("no_locks")
def test_on_a_file_system_without_locks_a_heartbeat_takes_their_place(path: Path) -> None:
    with locked(path, "a-run") as lease:
        assert is_locked(path)
        with pytest.raises(AlreadySupervised), locked(path, "a-run"):
            pass
        silence(lease.claims)
        assert not is_locked(path), "a supervisor that was not heard of for long is gone"
        lease.beat()
        assert is_locked(path)
    assert not is_locked(path)
    with locked(path, "a-run"):
        pass


@pytest.mark.usefixtures("no_locks")
def test_without_locks_one_that_was_held_up_undoes_nothing_of_its_successors(path: Path) -> None:
    with ExitStack() as later:
        with locked(path, "a-run") as old:
            silence(old.claims)
            new = later.enter_context(locked(path, "a-run"))
            assert new.before
            assert new.before.mark == old.mark
            old.beat()
            with pytest.raises(LeaseTaken, match=new.mark):
                old.check()
        new.check()
        assert is_locked(path)
        with pytest.raises(AlreadySupervised), locked(path, "a-run"):
            pass


@pytest.mark.usefixtures("no_locks")
def test_of_many_that_find_the_same_dead_supervisor_without_locks_one_gets_the_run(path: Path) -> None:
    taking, over = threading.Barrier(8), threading.Barrier(8)

    def take(_: int) -> str:
        taking.wait(20)
        try:
            with locked(path, "a-run") as lease:
                over.wait(20)
                return lease.mark
        except AlreadySupervised:
            over.wait(20)
            return ""

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(take, range(8)))) == 2, "one mark, and nothing seven times"


@pytest.mark.usefixtures("no_locks")
def test_a_number_that_was_given_and_deleted_is_not_given_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is held up between its look at the newest claim and its own."""
    for _ in range(2):
        with locked(path, "a-run"):
            pass
    answers, real = [0], lock.newest_claim
    monkeypatch.setattr(lock, "newest_claim", lambda claims: answers.pop() if answers else real(claims))
    with pytest.raises(AlreadySupervised), locked(path, "a-run"):
        pass
    assert [claim.name for claim in path.with_name("supervisors").iterdir()] == ["00000002"]


def test_a_lost_supervisor_stays_lost_when_its_successor_has_left_or_the_run_was_removed(path: Path) -> None:
    """Its lock was given to another machine, as a file server does that hears nothing of one."""
    with locked(path, "a-run") as lease:
        path.rename(path.with_name("the lock of before"))
        with locked(path, "a-run") as successor:
            pass
        with pytest.raises(LeaseTaken):
            lease.check()
        claim_file(lease.claims, successor.number).unlink()
        with pytest.raises(LeaseTaken):
            lease.check()


@pytest.mark.usefixtures("no_locks")
def test_what_one_that_was_held_up_still_logs_is_in_no_log(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with ExitStack() as later, run.lock() as old:
        log = EventLog(run.events)
        log.add(UserWarned(text="before"))
        silence(old.claims)
        new = later.enter_context(run.lock())
        assert new.before
        run.detach_log()
        successor = EventLog(run.events)
        log.add(UserWarned(text="held up"))
        successor.add(UserWarned(text="after"))
        log.close()
        successor.close()
    assert [event.text for event in read(run.events) if isinstance(event, UserWarned)] == ["before", "after"]


def test_another_error_of_the_lock_names_the_mount(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(_file: Any, _how: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(fcntl, "flock", stale)
    with pytest.raises(UsageError, match="file system mounted at /"), locked(path, "a-run"):
        pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OSError]]:
    """What reads of claims raise, each once."""
    found: list[OSError] = []
    read_text = Path.read_text

    def flaky(self: Path, *args: Any, **kwargs: Any) -> str:
        if self.parent.name == lock.CLAIMS and found:
            raise found.pop()
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", flaky)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.0)
    yield found
    assert not found


def test_failed_reads_of_a_claim_end_nothing(path: Path, answers: list[OSError]) -> None:
    with locked(path, "a-run") as lease:
        answers += [OSError(errno.ESTALE, "stale"), OSError(errno.EIO, "io")]
        lease.check()
        claim_file(lease.claims, lease.number + 1).write_text("another\n")
        with pytest.raises(LeaseTaken, match="taken over this run: another"):
            lease.check()
