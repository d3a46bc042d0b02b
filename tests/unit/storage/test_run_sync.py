"""How much a run's copy on remote storage costs a second, whatever the number of ranks; and which URLs name one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.common.errors import DtrainError
from dtrain.record import log_retention
from dtrain.record.folder import RunDir
from dtrain.storage import run_sync
from dtrain.storage.object_store import ObjectStore
from dtrain.storage.run_copy import PART_BYTES, RunCopy

RANKS = 30
LIMIT = 10


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """One with the logs of many ranks; the first of them has written far more than the others."""
    run = RunDir(tmp_path / "run")
    run.create_folders()
    run.events.write_text("{}\n")
    for rank in range(RANKS):
        run.rank_log(rank).write_bytes(b"x" * (100 * PART_BYTES if rank == 0 else 10))
    return run


def test_a_round_writes_a_bounded_number_of_objects_and_ranks_take_turns(run: RunDir, tmp_path: Path) -> None:
    remote = ObjectStore(f"file://{tmp_path}/there", {})
    copy = RunCopy(run, remote, claim=1)
    seen = 0
    for turn in range(1, 5):
        copy.push(LIMIT)
        objects = remote.sizes()
        assert "events.jsonl/000000000000-00000001" in objects
        assert len(objects) - seen <= LIMIT + 1
        seen = len(objects)
        ranks = {name.split("/")[1] for name in objects if name.startswith("logs/")}
        assert len(ranks) == min(RANKS, LIMIT * turn)


def test_the_last_round_writes_everything(run: RunDir, tmp_path: Path) -> None:
    remote = ObjectStore(f"file://{tmp_path}/there", {})
    RunCopy(run, remote, claim=1).push()
    assert sum(remote.sizes("logs").values()) == 100 * PART_BYTES + 10 * (RANKS - 1)


def test_what_was_removed_of_a_log_is_deleted_there_too(tmp_path: Path) -> None:
    run, remote = RunDir(tmp_path / "run"), ObjectStore(f"file://{tmp_path}/there", {})
    run.create_folders()
    run.events.write_text("{}\n")
    line = b"x" * 99 + b"\n"
    run.rank_log(0).write_bytes(line * 90_000)
    copy = RunCopy(run, remote, claim=1)
    copy.push()
    removed = log_retention.shorten(run.rank_log(0), 4 << 20)
    with open(run.rank_log(0), "ab") as log:
        log.write(b"the end\n")
    copy.push()
    there = remote.sizes("logs")
    assert 9_000_000 - removed - 2 * PART_BYTES < sum(there.values()) < 9_000_000 - removed + 2 * PART_BYTES
    pulled = RunDir(tmp_path / "pulled" / run.id)
    pulled.path.mkdir(parents=True)
    pulled.job_file.write_text("{}")
    RunCopy(pulled, remote).pull()
    assert pulled.rank_log(0).stat().st_size == run.rank_log(0).stat().st_size
    head = log_retention.read(pulled.rank_log(0), 0)
    assert set(head.data.splitlines(keepends=True)[:-1]) == {line}
    newest = log_retention.read(pulled.rank_log(0), len(head.data))
    assert newest.removed > 0
    assert newest.data.endswith(line + b"the end\n")
    assert newest.last


@pytest.mark.parametrize("end", ["..", ".", "a-run/..", "../..", "%2e%2e", "a b", ""])
def test_a_url_that_names_no_run_makes_no_folder(end: str, tmp_path: Path) -> None:
    (tmp_path / "there" / "a-run").mkdir(parents=True)
    (tmp_path / "there" / "a-run" / "job.json").write_text("{}")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DtrainError):
        run_sync.find(tmp_path / "runs", f"file://{tmp_path}/there/{end}")
    assert set(tmp_path.rglob("*")) == before
