"""The lock of a run tells a living supervisor from a file system that has no locks or does not answer for a moment."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from dtrain.common.errors import ClusterError, UsageError
from dtrain.record import lock
from dtrain.record.lock import Lease, is_locked, locked


def no_locks(_file: Any, _how: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_a_second_supervisor_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", "a-run"):
        assert is_locked(tmp_path / "lock")
        with (
            pytest.raises(UsageError, match=f"already supervised by process {os.getpid()}"),
            locked(tmp_path / "lock", "a-run"),
        ):
            pass
    assert not is_locked(tmp_path / "lock")


def test_on_a_file_system_without_locks_a_heartbeat_takes_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.01)
    path = tmp_path / "lock"
    with locked(path, "a-run") as lease:
        assert is_locked(path)
        with pytest.raises(UsageError, match="already supervised"), locked(path, "a-run"):
            pass
        os.utime(path, (0, 0))
        assert not is_locked(path), "a supervisor that was not heard of for long is gone"
        lease.beat()
        assert is_locked(path)
    assert not is_locked(path)


def test_another_error_of_the_lock_names_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(_file: Any, _how: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(fcntl, "flock", stale)
    with pytest.raises(UsageError, match="file system mounted at /"), locked(tmp_path / "lock", "a-run"):
        pass


def test_one_failed_read_of_the_lock_file_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.write_text("me")
    lease = Lease(path, "me")
    answers = [OSError(errno.ESTALE, "stale"), OSError(errno.EIO, "io")]
    read = Path.read_text

    def flaky(self: Path, *args: Any, **kwargs: Any) -> str:
        if self == path and answers:
            raise answers.pop()
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", flaky)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.0)
    lease.check()
    assert not answers
    path.write_text("another")
    with pytest.raises(ClusterError, match="taken over"):
        lease.check()
