"""What an agent has of in-memory checkpoints, and how it comes to other nodes: real memory files and real sockets."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from dtrain.agent.memory.copies import BUFFERS, MemoryCopies
from dtrain.agent.memory.transfer import BLOCK, MemoryServer, PartnerCopies, all_parts, fetch
from dtrain.api.memory_protocol import HeldPart, MemoryCheckpoint, MemoryPeer
from dtrain.api.reports import MemoryOffered
from dtrain.checkpoint.memory_record import MemoryRecord, RecordFile
from dtrain.common.files import digest

KEY = "secret"


class Worker:
    """Plays a rank: its buffer and its record are memory files of this process."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.buffer = os.memfd_create("buffer")
        self.record = RecordFile()

    def snapshot(self, step: int, data: bytes, *, sealed: bool = True) -> None:
        self.record.begin()
        os.ftruncate(self.buffer, len(data))
        os.pwrite(self.buffer, data, 0)
        record = MemoryRecord(step, self.rank, f"part{self.rank}", len(data), (), {f"small{self.rank}": 3})
        self.record.complete(record, {f"small{self.rank}": b"abc"})
        if sealed:
            self.record.seal(digest(data).digest())

    def offered_to(self, copies: MemoryCopies, attempt: int = 1) -> None:
        copies.offer(attempt, self.rank, os.getpid(), MemoryOffered(self.buffer, self.record.fd))


@pytest.fixture
def copies(tmp_path: Path) -> MemoryCopies:
    return MemoryCopies(tmp_path / "memory" / "node0")


def test_a_view_is_a_folder_of_the_files(copies: MemoryCopies) -> None:
    worker = Worker(2)
    worker.offered_to(copies)
    worker.snapshot(5, b"tensors")
    os.close(worker.buffer)
    folder = copies.view(1, 5, {2: copies.steps(1, 2)[5]})
    assert (folder / "part2").read_bytes() == b"tensors"
    assert (folder / "small2").read_bytes() == b"abc"
    copies.close()
    assert not folder.parent.parent.exists()


def test_what_is_being_written_is_not_held(copies: MemoryCopies) -> None:
    first, second = Worker(0), Worker(0)
    for worker, step in ((first, 5), (second, 10)):
        worker.offered_to(copies)
        worker.snapshot(step, b"data")
    first.record.begin()
    assert copies.held() == (HeldPart(1, 0, 10),)


@pytest.mark.parametrize("sealed", [True, False])
def test_after_a_fault_only_what_the_digest_proves_is_held(copies: MemoryCopies, *, sealed: bool) -> None:
    worker = Worker(0)
    worker.offered_to(copies)
    worker.snapshot(5, b"data", sealed=sealed)
    copies.distrust(1, 0)
    assert bool(copies.held()) == sealed


def test_what_was_written_to_after_its_digest_is_dropped(copies: MemoryCopies) -> None:
    worker = Worker(0)
    worker.offered_to(copies)
    worker.snapshot(5, b"data")
    os.pwrite(worker.buffer, b"X", 1)
    assert copies.held() == ()
    assert copies.steps(1, 0) == {}


def test_memory_of_older_attempts_goes_when_every_rank_has_two_newer_ones(copies: MemoryCopies) -> None:
    before = Worker(0)
    before.offered_to(copies)
    before.snapshot(5, b"data")
    buffers = [Worker(0), Worker(0)]
    for worker in buffers:
        worker.offered_to(copies, attempt=2)
    buffers[0].snapshot(10, b"data")
    assert not copies.superseded(2, [0])
    buffers[1].snapshot(15, b"data")
    assert copies.superseded(2, [0])
    assert not copies.superseded(2, [0, 1]), "rank 1 has none"
    copies.offer(2, 1, os.getpid(), MemoryOffered())
    assert copies.superseded(2, [0, 1])
    copies.keep_only((2,))
    assert {part.attempt for part in copies.held()} == {2}


def test_descriptors_are_closed_with_what_they_are_of(copies: MemoryCopies) -> None:
    known = descriptors()
    workers = [Worker(0) for _ in range(BUFFERS + 2)]
    own = descriptors()
    assert own == known + 2 * len(workers)
    for worker in workers:
        worker.offered_to(copies)
    assert descriptors() == own + 2 * BUFFERS
    copies.close()
    assert descriptors() == own


def descriptors() -> int:
    """Open in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def served(copies: MemoryCopies) -> MemoryServer:
    return MemoryServer("127.0.0.1", KEY, copies)


def test_a_part_comes_from_another_node_as_it_is_there(copies: MemoryCopies, tmp_path: Path) -> None:
    data = os.urandom(BLOCK + 12345)
    worker = Worker(3)
    worker.offered_to(copies)
    worker.snapshot(5, data)
    server, other = served(copies), MemoryCopies(tmp_path / "other")
    memory = MemoryCheckpoint(1, 5, (MemoryPeer("127.0.0.1", server.port, (3,)),))
    (copy,) = all_parts(other, memory, KEY).values()
    assert os.pread(copy.buffer, len(data) + 1, 0) == data
    found = copy.read()
    assert found
    assert found[1] == {"small3": b"abc"}
    assert other.held() == (HeldPart(1, 3, 5),)
    with pytest.raises(OSError, match="any more"):
        all_parts(other, MemoryCheckpoint(1, 6, memory.peers), KEY)
    server.close()


def test_nobody_gets_anything_without_the_key(copies: MemoryCopies) -> None:
    worker = Worker(0)
    worker.offered_to(copies)
    worker.snapshot(5, b"data")
    server = served(copies)
    peer = MemoryPeer("127.0.0.1", server.port, (0,))
    with pytest.raises(ConnectionError):
        fetch(peer, "another", 1, {0: 5}, exact=True)
    for nonsense in (b"", b"\n", b"{}\n", b"[1]\n", b'{"key": 1}\n', b"\xff\xff\n"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
    assert fetch(peer, KEY, 1, {0: 5}, exact=True)[0].step == 5
    server.close()


def test_a_part_that_was_overwritten_while_it_was_sent_is_not_taken(copies: MemoryCopies) -> None:
    """The asker reads the head and waits until the buffer has been written to."""
    worker = Worker(0)
    worker.offered_to(copies)
    worker.snapshot(5, os.urandom(4 * BLOCK))
    server = served(copies)
    with socket.create_connection(("127.0.0.1", server.port)) as connection, connection.makefile("rwb") as stream:
        stream.write(json.dumps({"key": KEY, "attempt": 1, "ranks": {"0": 5}, "exact": True}).encode() + b"\n")
        stream.flush()
        stream.readline()
        worker.record.begin()
        *_, last, newline = stream.read()
    assert (last, bytes([newline])) == (0, b"\n")
    server.close()


def test_a_partner_follows_and_keeps_two(copies: MemoryCopies, tmp_path: Path) -> None:
    worker, arrived = Worker(0), threading.Event()
    worker.offered_to(copies)
    server, other = served(copies), MemoryCopies(tmp_path / "other")
    partner = PartnerCopies(MemoryPeer("127.0.0.1", server.port, (0,)), KEY, 1, other, lambda text: arrived.set())
    for step in (5, 10, 15):
        worker.snapshot(step, f"step {step}".encode())
        for _ in range(200):
            if step in other.steps(1, 0):
                break
            arrived.wait(0.05)
    assert sorted(other.steps(1, 0)) == [10, 15]
    assert not arrived.is_set(), "a warning"
    partner.stop()
    server.close()
