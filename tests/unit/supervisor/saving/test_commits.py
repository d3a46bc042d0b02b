"""What becomes of the parts of checkpoints, with a real store."""

from __future__ import annotations

import queue
from pathlib import Path

from dtrain.api.reports import ShardWritten
from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.checkpoint.store import CheckpointOrigin, CheckpointShard
from dtrain.common.files import hashed
from dtrain.job.job import Checkpoint
from dtrain.record import event_log
from dtrain.record.event_log import EventLog
from dtrain.record.events import UserWarned
from dtrain.supervisor.beside.background import Lane, TaskDone
from dtrain.supervisor.saving.commits import CheckpointCommits
from dtrain.supervisor.saving.retention import CheckpointRetention


def test_a_part_that_arrives_after_its_checkpoint_failed_takes_no_space(tmp_path: Path) -> None:
    done: queue.SimpleQueue[TaskDone] = queue.SimpleQueue()
    log, store = EventLog(tmp_path / "events.jsonl"), LocalCheckpointStore(tmp_path)
    commits = CheckpointCommits(
        1, store, Lane("test", done.put), log, ranks=2,
        retention=CheckpointRetention(Checkpoint(), log.path), origin=CheckpointOrigin("s", 2, "a-run"), saved_step=0, begun_step=0,
        changed=lambda: None,
    )  # fmt: skip
    commits.fail(5, "the file system is read-only")
    done.get(timeout=10).answer()
    late = store.staging(1, 5)
    late.mkdir()
    (late / "part").write_bytes(b"x")
    commits.add(0, ShardWritten(5, {"part": (1, "")}, "", 0.0, 0.0))
    done.get(timeout=10).answer()
    assert not late.exists()
    log.close()


def test_an_attempt_that_began_in_memory_must_save(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    commits = CheckpointCommits(
        2, LocalCheckpointStore(tmp_path), Lane("storage", lambda done: None), log, ranks=1,
        retention=CheckpointRetention(Checkpoint(), log.path), origin=CheckpointOrigin("s", 1, "a-run"), saved_step=10,
        begun_step=15, changed=lambda: None,
    )  # fmt: skip
    assert commits.unsaved(15) == "the in-memory checkpoint of step 15 was not written"
    commits.saved_step = 15
    assert not commits.unsaved(15)
    assert commits.unsaved(20) == "the newest checkpoint is that of step 15 of 20"
    log.close()


def test_a_full_disk_keeps_the_newest_and_what_was_asked_for(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "events.jsonl"), LocalCheckpointStore(tmp_path)
    done: queue.SimpleQueue[TaskDone] = queue.SimpleQueue()
    commits = CheckpointCommits(
        1, store, Lane("storage", done.put), log, ranks=1, retention=CheckpointRetention(Checkpoint(keep_every=10), log.path),
        origin=CheckpointOrigin("s", 1, "a-run"), saved_step=0, begun_step=0, changed=lambda: None,
    )  # fmt: skip
    for step in (10, 15, 20, 25):
        folder = store.staging(1, step)
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
        store.commit(
            1, step, [CheckpointShard({"part": hashed(folder / "part")}, "")], CheckpointOrigin("s", 1, "a-run")
        )
    commits.fail(30, "No space left on device")
    for _ in range(2):
        done.get(timeout=10).answer()
    assert store.steps() == [25, 20, 10]
    log.close()
    (warned,) = [event for event in event_log.read(log.path) if isinstance(event, UserWarned)]
    assert "the checkpoint of step 15" in warned.text
