"""Kept buffers: which one a snapshot may overwrite, and what is said of what is in it."""

from __future__ import annotations

import errno
import os

from dtrain.checkpoint import memory_record
from dtrain.checkpoint.kept_buffer import KeptBuffer, KeptBuffers
from dtrain.checkpoint.memory_record import MemoryRecord, RecordFile
from dtrain.checkpoint.tensor_file import TensorEntry, TensorFile, laid_out

FILE = laid_out([TensorEntry("x", "F32", (4,))])
OTHER = laid_out([TensorEntry("x", "F32", (5,))])


def kept(buffers: KeptBuffers[KeptBuffer], step: int) -> KeptBuffer:
    """The buffer of an in-memory checkpoint."""
    buffer = buffers.taken(FILE)
    buffer.record.complete(MemoryRecord(step, 0, "file", FILE.size), {})
    buffer.step = step
    buffer.free.set()
    return buffer


def test_without_in_memory_checkpoints_one_buffer_is_enough() -> None:
    buffers = KeptBuffers(KeptBuffer)
    first = buffers.taken(FILE)
    first.free.set()
    assert buffers.taken(FILE) is first


def test_the_newest_in_memory_checkpoint_is_not_overwritten() -> None:
    buffers = KeptBuffers(KeptBuffer)
    first, second = kept(buffers, 5), kept(buffers, 10)
    assert second is not first
    third = buffers.taken(FILE)
    assert third is first
    assert memory_record.read(first.record.fd) is None, "it is being written to"
    found = memory_record.read(second.record.fd)
    assert found
    assert found[0].step == 10


def test_a_write_and_the_newest_copy_leave_a_third() -> None:
    buffers = KeptBuffers(KeptBuffer)
    written = buffers.taken(FILE)
    written.step = 5
    newest = kept(buffers, 10)
    assert buffers.taken(FILE) not in (written, newest)


def test_with_memory_for_one_the_newest_copy_is_given_up() -> None:
    made: list[KeptBuffer] = []

    def make(file: TensorFile) -> KeptBuffer:
        if made:
            raise OSError(errno.ENOMEM, "no memory")
        made.append(KeptBuffer(file))
        return made[0]

    buffers = KeptBuffers(make)
    first = kept(buffers, 5)
    assert buffers.taken(FILE) is first
    assert memory_record.read(first.record.fd) is None


def test_another_layout_gives_the_memory_back() -> None:
    buffers = KeptBuffers(KeptBuffer)
    first = kept(buffers, 5)
    agents = os.dup(first.record.fd)
    buffers.taken(OTHER)
    assert memory_record.read(agents) is None
    assert first not in buffers._buffers


def test_a_record_is_read_as_it_was_written_and_not_while_it_is_written() -> None:
    file = RecordFile()
    assert memory_record.read(file.fd) is None
    record = MemoryRecord(7, 1, "part", 100, [("w", 0, 4, "F32")], {"a": 3, "b": 0})
    file.complete(record, {"a": b"abc", "b": b""})
    assert memory_record.sealed(file.fd) is None
    file.seal(b"d" * 32)
    assert memory_record.sealed(file.fd) == b"d" * 32
    found = memory_record.read(file.fd)
    assert found
    assert (found[0].step, found[0].rank, found[0].file, found[1]) == (7, 1, "part", {"a": b"abc", "b": b""})
    file.begin()
    assert memory_record.read(file.fd) is None
    file.complete(MemoryRecord(8, 1, "part", 100, (), {"a": 1}), {"a": b"z"})
    shorter = memory_record.read(file.fd)
    assert shorter
    assert shorter[1] == {"a": b"z"}
    assert memory_record.sealed(file.fd) is None, "the digest is of the snapshot before"
