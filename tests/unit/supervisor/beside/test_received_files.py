"""What nodes without the run folder send is kept, whole and in order, also when the disk is full for a while."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from live import small_disk

from dtrain.api.protocol import FileAppended, Fragment
from dtrain.record.folder import RunDir
from dtrain.supervisor.beside.received_files import ReceivedFiles


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create_folders()
    return run


def piece(name: str, offset: int, data: bytes) -> FileAppended:
    return FileAppended(name, offset, base64.b64encode(data).decode())


def test_pieces_wait_for_room_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", "256k"):
        run = RunDir(tmp_path / "disk" / "run")
        run.create_folders()
        hog = run.path / "hog"
        received = ReceivedFiles(run, 0)
        received.take("n0", piece("logs/rank-00000.log", 0, b"first\n"))
        with hog.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        lines = [f"line {number} {'x' * 3000}\n".encode() for number in range(5)]
        for number, line in enumerate(lines):
            received.take("n0", piece("logs/rank-00000.log", 6, line))
            received.take("n0", piece("ledger/attempt-0001-rank-00000.bin", 4 * number, bytes([number]) * 4))
        hog.unlink()
        received.take("n0", piece("logs/rank-00000.log", 0, b"last\n"))
        assert run.rank_log(0).read_bytes() == b"first\n" + b"".join(lines) + b"last\n"
        assert run.ledger(1, 0).read_bytes() == bytes(number for number in range(5) for _ in range(4))


@pytest.mark.parametrize(
    "item",
    [piece("job.json", 0, b"x"), piece("../outside", 0, b"x"), piece("logs/../job.json", 0, b"x"),
     piece("profiles/../job.json", 0, b"x"), piece("/etc/outside", 0, b"x"), FileAppended("logs/a.log", 0, "no base64"),
     Fragment("nonsense", first=True, last=True)],
    ids=str,
)  # fmt: skip
def test_what_no_agent_sends_is_ignored(item: FileAppended | Fragment, run: RunDir) -> None:
    before = set(run.path.rglob("*"))
    assert ReceivedFiles(run, 0).take("n0", item) is None
    assert set(run.path.rglob("*")) == before


def test_what_is_sent_twice_counts_once_in_a_ledger(run: RunDir) -> None:
    received = ReceivedFiles(run, 0)
    for _ in range(2):
        received.take("n0", piece("ledger/attempt-0001-rank-00000.bin", 0, b"abcd"))
    assert run.ledger(1, 0).read_bytes() == b"abcd"
