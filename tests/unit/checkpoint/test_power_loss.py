"""After a power loss at any moment of a commit, a deletion or a log, what was promised is there: each state that the recorded system calls
may leave is tried."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recorded_disk import Moment, recording, restored

from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.checkpoint.store import CheckpointInfo, CheckpointOrigin, CheckpointShard
from dtrain.common.files import hashed
from dtrain.job.job import Job
from dtrain.record import folder
from dtrain.record.event_log import EventLog, read
from dtrain.record.events import RunEnded, UserWarned
from dtrain.record.folder import RunDir

ORIGIN = CheckpointOrigin("ddp", 1, "a-run")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def commit(store: LocalCheckpointStore, attempt: int, step: int) -> None:
    staged = store.staging(attempt, step)
    staged.mkdir()
    files = {}
    for name in ("__0_0.safetensors", "index.json"):
        (staged / name).write_bytes(f"{name} {step}".encode())
        files[name] = hashed(staged / name)
    store.commit(attempt, step, [CheckpointShard(files, "1")], ORIGIN)


def after_power_loss(moments: list[Moment], tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The number of the last call, and a folder with what may be left, for each state once."""
    seen: set[str] = set()
    numbers = itertools.count()
    for number, moment in enumerate(moments):
        for state in moment.states():
            key = f"{number == len(moments) - 1}{sorted(state.items())}"
            if key not in seen:
                seen.add(key)
                left = restored(state, tmp_path / f"left-{next(numbers)}")
                yield number, left
                shutil.rmtree(left)


def newest(checkpoints: Path) -> int:
    """The step that a restart goes on from; nothing is damaged."""
    store = LocalCheckpointStore(checkpoints)
    store.clear_staging()
    (found,) = store.latest_valid()
    assert isinstance(found, CheckpointInfo), found
    return found.step


def test_a_commit_is_there_or_not_and_once_it_is_said_to_be_it_stays(disk: Path, tmp_path: Path) -> None:
    commit(LocalCheckpointStore(disk), 1, 10)
    with recording(disk) as recorded:
        commit(LocalCheckpointStore(disk), 2, 20)
    last, steps = len(recorded.moments) - 1, set()
    for number, left in after_power_loss(recorded.moments, tmp_path):
        step = newest(left)
        steps.add(step)
        assert step == 20 if number == last else step in (10, 20), recorded.moments[number].call
    assert steps == {10, 20}


@pytest.mark.parametrize(
    "what", [LocalCheckpointStore.clear_staging, lambda store: store.prune(lambda steps: steps[:1])]
)
def test_deleting_leaves_the_newest_and_nothing_half(
    what: Callable[[LocalCheckpointStore], None], disk: Path, tmp_path: Path
) -> None:
    store = LocalCheckpointStore(disk)
    for step in (10, 20, 30):
        commit(store, 1, step)
    store.staging(2, 40).mkdir()
    (store.staging(2, 40) / "part").write_bytes(b"x")
    with recording(disk) as recorded:
        what(store)
    for _, left in after_power_loss(recorded.moments, tmp_path):
        assert newest(left) == 30
        assert not [path for path in left.iterdir() if not path.name.startswith(("step-", ".staging-"))]


def test_the_number_of_an_attempt_is_never_given_again(disk: Path, tmp_path: Path) -> None:
    with recording(disk) as recorded:
        assert LocalCheckpointStore(disk).new_attempt(0) == 1
    last = len(recorded.moments) - 1
    for number, left in after_power_loss(recorded.moments, tmp_path):
        assert number < last or LocalCheckpointStore(left).new_attempt(0) == 2


def test_a_run_that_was_made_is_there(disk: Path, tmp_path: Path) -> None:
    with recording(disk) as recorded:
        run = folder.create(disk / "runs", Job("a-run", script="x.py", folder="/"))
    last = len(recorded.moments) - 1
    for number, left in after_power_loss(recorded.moments, tmp_path):
        if number == last:
            found = RunDir(left / "runs" / run.id)
            assert found.job().name == "a-run"
            assert found.checkpoints.is_dir()


def test_the_end_of_a_run_that_has_ended_is_in_its_log(disk: Path, tmp_path: Path) -> None:
    with recording(disk) as recorded:
        log = EventLog(disk / "events.jsonl")
        log.add(UserWarned(text="one"))
        log.add(RunEnded(exit_code=0, reason="finished"))
        log.close()
    last = len(recorded.moments) - 1
    for number, left in after_power_loss(recorded.moments, tmp_path):
        if number == last:
            assert [type(event) for event in read(left / "events.jsonl")] == [UserWarned, RunEnded]
