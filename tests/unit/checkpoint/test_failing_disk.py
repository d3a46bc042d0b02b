"""One system call of a commit, a deletion, a lock or a log fails, each in turn: an error that is known, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from recorded_disk import ERRORS, RecordedDisk, failing, on

from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.checkpoint.store import CheckpointInfo, CheckpointOrigin, CheckpointShard
from dtrain.common.errors import CheckpointError, StorageError
from dtrain.common.files import hashed, write_whole
from dtrain.record.event_log import EventLog, read
from dtrain.record.events import UserWarned
from dtrain.record.lock import is_locked, locked

ORIGIN = CheckpointOrigin("ddp", 1, "a-run")


@pytest.fixture(params=ERRORS, ids=os.strerror)
def code(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


def each_call_fails(
    code: int, tmp_path: Path, before: Callable[[Path], object], what: Callable[[Path], object]
) -> Iterator[Path]:
    """A folder after `what` was tried there with its n-th call failing, for each n."""
    for number in itertools.count(1):
        folder = tmp_path / f"disk-{number}"
        folder.mkdir()
        before(folder)
        with failing(folder, number, code) as disk:
            what(folder)
        if disk.calls < number:
            assert number > 2, "nothing was called"
            return
        yield folder
        shutil.rmtree(folder)


def staged(folder: Path, attempt: int, step: int) -> list[CheckpointShard]:
    part = LocalCheckpointStore(folder).staging(attempt, step)
    part.mkdir()
    (part / "tensors").write_bytes(bytes([step]) * 100)
    return [CheckpointShard({"tensors": hashed(part / "tensors")}, "1")]


def two(folder: Path) -> None:
    for step in (10, 20):
        LocalCheckpointStore(folder).commit(1, step, staged(folder, 1, step), ORIGIN)


def newest(folder: Path) -> int:
    store = LocalCheckpointStore(folder)
    store.clear_staging()
    (found,) = store.latest_valid()
    assert isinstance(found, CheckpointInfo), found
    return found.step


def test_a_commit_that_fails_says_so_and_the_next_one_works(code: int, tmp_path: Path) -> None:
    said: list[int] = []

    def commit(folder: Path) -> None:
        with suppress(CheckpointError):
            said.append(LocalCheckpointStore(folder).commit(2, 30, parts.pop(), ORIGIN).step)

    parts: list[list[CheckpointShard]] = []

    def before(folder: Path) -> None:
        two(folder)
        parts.append(staged(folder, 2, 30))
        said.clear()

    for folder in each_call_fails(code, tmp_path, before, commit):
        assert newest(folder) == 30 if said else newest(folder) in (20, 30)
        LocalCheckpointStore(folder).commit(3, 40, staged(folder, 3, 40), ORIGIN)
        assert newest(folder) == 40


@pytest.mark.parametrize(
    "what", [LocalCheckpointStore.clear_staging, lambda store: store.prune(lambda steps: steps[:1])]
)
def test_deleting_that_fails_keeps_what_stays(
    what: Callable[[LocalCheckpointStore], None], code: int, tmp_path: Path
) -> None:
    def before(folder: Path) -> None:
        two(folder)
        staged(folder, 2, 30)

    def delete(folder: Path) -> None:
        with suppress(OSError):
            what(LocalCheckpointStore(folder))

    for folder in each_call_fails(code, tmp_path, before, delete):
        assert newest(folder) == 20
        LocalCheckpointStore(folder).prune(lambda steps: steps[:1])
        assert LocalCheckpointStore(folder).steps() == [20]


def test_a_number_that_could_not_be_reserved_is_not_lost_for_others(code: int, tmp_path: Path) -> None:
    given: list[int] = []

    def reserve(folder: Path) -> None:
        given.clear()
        with suppress(OSError, StorageError):
            given.append(LocalCheckpointStore(folder).new_attempt(0))

    for folder in each_call_fails(code, tmp_path, lambda folder: None, reserve):
        assert LocalCheckpointStore(folder).new_attempt(0) > max(given, default=0)


def test_a_lock_that_could_not_be_taken_can_be_taken_later(code: int, tmp_path: Path) -> None:
    def take(folder: Path) -> None:
        with suppress(OSError, StorageError), locked(folder / "lock", "a-run") as lease:
            lease.check()

    for folder in each_call_fails(code, tmp_path, lambda folder: None, take):
        assert not is_locked(folder / "lock")
        with locked(folder / "lock", "a-run") as lease:
            lease.check()


def test_a_file_that_is_replaced_is_the_old_or_the_new_one(code: int, tmp_path: Path) -> None:
    def replace(folder: Path) -> None:
        with suppress(OSError):
            write_whole(folder / "file", "new")

    for folder in each_call_fails(code, tmp_path, lambda folder: (folder / "file").write_text("old"), replace):
        assert (folder / "file").read_text() in ("old", "new")
        write_whole(folder / "file", "newer")
        assert [path.name for path in folder.iterdir()] == ["file"]


def log_lines(folder: Path) -> list[str]:
    return [event.text for event in read(folder / "events.jsonl") if isinstance(event, UserWarned)]


LINES = [f"line {number}" for number in range(6)]


def test_no_line_of_a_log_is_lost_or_out_of_order(code: int, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        with suppress(OSError):  # it could not be opened
            log = EventLog(folder / "events.jsonl")
            for line in LINES:
                log.add(UserWarned(text=line))
                log.flush()
            log.close()
            written.append(folder)

    written: list[Path] = []
    for folder in each_call_fails(code, tmp_path, lambda folder: None, write):
        if folder in written:
            assert log_lines(folder) == LINES
        log = EventLog(folder / "events.jsonl")
        log.close()


def test_short_writes_and_a_disk_that_is_full_for_a_while_lose_no_line(tmp_path: Path) -> None:
    real, full = os.write, [3, 4, 5]

    def short(descriptor: int, data: bytes) -> int:
        return real(descriptor, bytes(data)[: max(1, len(data) // 2)])

    disk = RecordedDisk(
        tmp_path, lambda number, call: OSError(28, "full") if call == "write" and number in full else None, record=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", short)
        with on(disk):
            log = EventLog(tmp_path / "events.jsonl")
            for line in LINES:
                log.add(UserWarned(text=line))
            log.close()
    assert log_lines(tmp_path) == LINES
