"""What an agent has of in-memory checkpoints, and how it comes to other nodes: real memory files and real sockets."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from live import wait_for

from dtrain.agent.memory.copies import BUFFERS, MemoryCopies, MemoryCopy
from dtrain.agent.memory.handshake import NONCE_BYTES, PROOF_BYTES, introduce
from dtrain.agent.memory.node_memory import NodeMemory
from dtrain.agent.memory.transfer import BLOCK, MOST_STRANGERS, MemoryServer, PartnerCopies, all_parts, fetch
from dtrain.api.memory_protocol import HeldPart, MemoryCheckpoint, MemoryPeer
from dtrain.api.protocol import AgentEvent, StartWorkers
from dtrain.api.reports import MemoryOffered
from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.checkpoint.memory_record import MemoryRecord, RecordFile
from dtrain.common.files import digest
from dtrain.record.folder import RunDir

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
    copies.keep_only((2,), before=2)
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
    for nonsense in (b"", b"\n", b'{"key": 1}\n', b"\xff" * 64, b"x" * 1000):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(nonsense)
            with suppress(OSError):  # it has hung up already
                connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as stream, suppress(ConnectionError):
                assert len(stream.read()) == NONCE_BYTES, "nothing but the server's random number"
    assert fetch(peer, KEY, 1, {0: 5}, exact=True)[0].step == 5
    server.close()


def test_one_who_has_the_port_of_an_agent_learns_no_key_and_is_not_believed() -> None:
    """It answers as the agent did, as far as it can: it has heard a handshake before, too."""
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        told: list[bytes] = []

        def answer() -> None:
            connection, _ = squatter.accept()
            with connection:
                connection.sendall(bytes(NONCE_BYTES))
                told.append(connection.recv(1 << 16))
                connection.sendall(told[0][NONCE_BYTES:])
                record = {"step": 5, "rank": 0, "file": "x", "size": 0, "small": {"../../.profile": 3}}
                connection.sendall(json.dumps({"rank": 0, "record": record}).encode() + b"\nabc")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError, match="does not know the key"):
            fetch(MemoryPeer("127.0.0.1", squatter.getsockname()[1], (0,)), KEY, 1, {0: 5}, exact=True)
        thread.join()
        assert KEY.encode() not in told[0]


@pytest.mark.parametrize("name", ["../outside", "a/b", "/etc/passwd", ".."])
def test_a_name_outside_of_the_folder_is_refused(name: str, copies: MemoryCopies, tmp_path: Path) -> None:
    record = RecordFile()
    record.complete(MemoryRecord(5, 0, "part0", 0, (), {name: 3}), {name: b"abc"})
    copies.offer(1, 0, os.getpid(), MemoryOffered(os.memfd_create("buffer"), record.fd))
    server, other = served(copies), MemoryCopies(tmp_path / "other")
    memory = MemoryCheckpoint(1, 5, (MemoryPeer("127.0.0.1", server.port, (0,)),))
    with pytest.raises(OSError, match="a name"):
        all_parts(other, memory, KEY)
    with pytest.raises(OSError, match="names no file"):
        copies.view(1, 5, {0: copies.steps(1, 0)[5]})
    server.close()


def test_what_somebody_on_the_way_changes_is_found(copies: MemoryCopies) -> None:
    """Each byte of an answer, one after the other; the handshake is relayed as it is."""
    worker = Worker(0)
    worker.offered_to(copies)
    worker.snapshot(5, b"tensors")
    server = served(copies)
    length = len(through(server.port, damaged=None))
    for position in range(0, length, 7):
        with pytest.raises(OSError):
            through(server.port, damaged=position)
    server.close()


def through(port: int, damaged: int | None) -> bytes:
    """What a relay saw of an answer, of which it changed one byte after the handshake."""
    seen = bytearray()

    def relay(listener: socket.socket) -> None:
        with listener.accept()[0] as client, socket.create_connection(("127.0.0.1", port)) as server:
            client.sendall(exactly(server, NONCE_BYTES))
            server.sendall(exactly(client, NONCE_BYTES + PROOF_BYTES))
            client.sendall(exactly(server, PROOF_BYTES))
            server.sendall(client.recv(1 << 16))
            while data := server.recv(1):
                flip = damaged is not None and len(seen) == damaged
                seen.extend(data)
                with suppress(OSError):
                    client.sendall(bytes([data[0] ^ 1]) if flip else data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=relay, args=(listener,))
        thread.start()
        try:
            fetch(MemoryPeer("127.0.0.1", listener.getsockname()[1], (0,)), KEY, 1, {0: 5}, exact=True)
        finally:
            thread.join()
    return bytes(seen)


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def test_strangers_cost_a_bounded_number_of_threads_and_descriptors_and_keep_nobody_out(copies: MemoryCopies) -> None:
    worker = Worker(0)
    worker.offered_to(copies)
    worker.snapshot(5, b"data")
    server = served(copies)
    known, silent = threading.active_count(), []
    for _ in range(200):
        silent.append(socket.create_connection(("127.0.0.1", server.port)))
    for _ in range(3):
        assert fetch(MemoryPeer("127.0.0.1", server.port, (0,)), KEY, 1, {0: 5}, exact=True)[0].step == 5
    wait_for(lambda: threading.active_count() <= known + MOST_STRANGERS + 1, "the end of older strangers", 10)
    for one in silent:
        one.close()
    server.close()


def test_a_server_without_a_descriptor_left_serves_again_when_there_are_some(copies: MemoryCopies) -> None:
    worker = Worker(0)
    worker.offered_to(copies)
    worker.snapshot(5, b"data")
    server = served(copies)
    peer = MemoryPeer("127.0.0.1", server.port, (0,))
    asked = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        asked.connect(("127.0.0.1", server.port))
        time.sleep(0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert fetch(peer, KEY, 1, {0: 5}, exact=True)[0].step == 5
    asked.close()
    server.close()


def test_a_part_that_comes_late_of_an_attempt_that_was_given_up_is_not_kept(copies: MemoryCopies) -> None:
    for attempt, kept in ((1, False), (2, True), (3, True)):
        record = RecordFile()
        record.complete(MemoryRecord(5, 0, "part0"), {})
        copies.keep_only({2}, before=3)
        copies.add(attempt, 0, MemoryCopy(os.memfd_create("buffer"), record.fd), 2)
        assert bool(copies.steps(attempt, 0)) == kept


def test_a_part_that_was_overwritten_while_it_was_sent_is_not_taken(copies: MemoryCopies) -> None:
    """The asker reads the head and waits until the buffer has been written to."""
    worker = Worker(0)
    worker.offered_to(copies)
    worker.snapshot(5, os.urandom(4 * BLOCK))
    server = served(copies)
    with socket.create_connection(("127.0.0.1", server.port)) as connection, connection.makefile("rwb") as stream:
        introduce(connection, KEY)
        stream.write(json.dumps({"attempt": 1, "ranks": {"0": 5}, "exact": True}).encode() + b"\n")
        stream.flush()
        stream.readline()
        worker.record.begin()
        unchanged, end = stream.read()[-2 * PROOF_BYTES - 2 :: PROOF_BYTES + 1][:2]
    assert (unchanged, bytes([end])) == (0, b"\n")
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


def test_a_record_with_a_size_that_its_memory_does_not_have_is_dropped(copies: MemoryCopies) -> None:
    file = RecordFile()
    file.complete(MemoryRecord(5, 0, "x", size=1 << 40), {})
    file.seal(bytes(31) + b"x")
    buffer = os.memfd_create("small")
    os.write(buffer, b"data")
    copies.add(1, 0, MemoryCopy(buffer, os.dup(file.fd)), 2)
    assert copies.held() == ()
    file.close()


def test_a_view_that_cannot_be_made_ends_no_agent(tmp_path: Path) -> None:
    """The next attempt's workers are refused with the reason, and the one after goes on from the disk."""
    sent: list[AgentEvent] = []
    memory = NodeMemory(RunDir(tmp_path), "node", sent.append)
    file = RecordFile()
    file.complete(MemoryRecord(5, 0, "../x", size=4), {})
    buffer = os.memfd_create("x")
    os.write(buffer, b"data")
    memory._copies.add(1, 0, MemoryCopy(buffer, os.dup(file.fd)), 2)
    rank, rendezvous = RankInfo(0, 1, 0, 1, 0, 1, 1), RendezvousInfo(("127.0.0.1",), (1,), "a-run", 2, 2)
    start = StartWorkers(2, (rank,), rendezvous, None, 5, memory=MemoryCheckpoint(1, 5, (MemoryPeer("", 0, (0,)),)))
    memory.begin(start)
    assert memory.ready(start)
    with pytest.raises(OSError, match="cannot be used"):
        memory.folder(start)
    assert [type(event).__name__ for event in sent] == ["MemoryHeld"]
    file.close()
    memory.close()
