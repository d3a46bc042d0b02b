"""The in-memory checkpoints of a node: shared memory of its workers, which the agent keeps open after they have ended, and copies of
another node's parts."""

from __future__ import annotations

import mmap
import os
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Collection, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from dtrain.api.memory_protocol import HeldPart
from dtrain.api.reports import MemoryOffered
from dtrain.checkpoint import memory_record
from dtrain.checkpoint.memory_record import MemoryRecord, RecordFile
from dtrain.common.files import digest, is_file_name

BUFFERS = 3
"""Buffers of one worker that are kept open; older ones are not in use."""
NEWEST = 2
"""Snapshots of each rank that are verified and reported: one rank may be one snapshot ahead of another."""


class MemoryCopy:
    """One snapshot of a rank and its record: two memory files, which stay open as long as this object exists."""

    def __init__(self, buffer: int, record: int) -> None:
        self.buffer = buffer
        """Descriptor."""
        self.record = record
        """Descriptor."""
        self.trusted = True
        """False if the worker ended with a fault of memory: the snapshot is used only if its digest is known and right."""
        for descriptor in (buffer, record):
            weakref.finalize(self, os.close, descriptor)

    @property
    def step(self) -> int | None:
        return memory_record.step_in(self.record)

    def read(self) -> tuple[MemoryRecord, dict[str, bytes]] | None:
        return memory_record.read(self.record)

    def valid(self) -> bool:
        """Whether it is complete and its digest is right. Without a digest, whether the worker is trusted."""
        found, wanted = self.read(), memory_record.sealed(self.record)
        if found is None or wanted is None:
            return found is not None and self.trusted
        try:
            with mmap.mmap(self.buffer, found[0].size, access=mmap.ACCESS_READ) as memory, memoryview(memory) as view:
                return bool(digest(view).digest() == wanted)
        except (OSError, ValueError):  # a size that the memory does not have
            return False


class MemoryCopies:
    """The snapshots on this node by attempt and rank. Thread-safe: the agent's loop and the transfer threads use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        """Folder for views of checkpoints as folders of files."""
        self._copies: dict[tuple[int, int], deque[MemoryCopy]] = {}
        self._without_part: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._viewed: list[MemoryCopy] = []
        self._kept: Container[int] = ()
        self._before = 0
        """Attempts before this one are given up but for those in `_kept`."""

    def offer(self, attempt: int, rank: int, pid: int, offered: MemoryOffered) -> None:
        """A worker has a new buffer. Raises `OSError` if this process may not open it."""
        if offered.buffer < 0:
            with self._lock:
                self._without_part.add((attempt, rank))
            return
        paths = (f"/proc/{pid}/fd/{descriptor}" for descriptor in (offered.buffer, offered.record))
        buffer, record = (os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in paths)
        self.add(attempt, rank, MemoryCopy(buffer, record), BUFFERS)

    def add(self, attempt: int, rank: int, copy: MemoryCopy, most: int) -> None:
        """Add a copy of a rank; beyond `most`, the oldest is removed. One that comes late, of an attempt that was given up, is not kept."""
        with self._lock:
            if attempt < self._before and attempt not in self._kept:
                return
            self._copies.setdefault((attempt, rank), deque()).append(copy)
            while len(self._copies[attempt, rank]) > most:
                self._copies[attempt, rank].popleft()

    def distrust(self, attempt: int, rank: int) -> None:
        """A worker may have written to its buffers at random: it ended with a fault."""
        for copy in self._of(attempt, rank):
            copy.trusted = False

    def held(self) -> tuple[HeldPart, ...]:
        """The two newest complete parts of each rank; those whose digests are wrong are dropped."""
        with self._lock:
            keys = list(self._copies)
            parts = [HeldPart(attempt, rank, -1) for attempt, rank in sorted(self._without_part)]
        newest = {key: sorted(self.steps(*key).items(), reverse=True)[:NEWEST] for key in keys}
        every = [(key, copy) for key, copies in newest.items() for _, copy in copies]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for (key, copy), valid in zip(every, pool.map(lambda one: one[1].valid(), every), strict=True):
                if not valid:
                    with self._lock, suppress(KeyError, ValueError):  # it has just gone
                        self._copies[key].remove(copy)
                elif (step := copy.step) is not None:
                    parts.append(HeldPart(*key, step))
        return tuple(parts)

    def steps(self, attempt: int, rank: int) -> dict[int, MemoryCopy]:
        """The complete copies of a rank by their steps."""
        return {step: copy for copy in self._of(attempt, rank) if (step := copy.step) is not None}

    def _of(self, attempt: int, rank: int) -> list[MemoryCopy]:
        with self._lock:
            return list(self._copies.get((attempt, rank), ()))

    def keep_only(self, attempts: Container[int], before: int = 0) -> None:
        """Give back the memory of all other attempts, and what still comes of those before this one."""
        with self._lock:
            self._kept, self._before = attempts, before
            self._copies = {key: copies for key, copies in self._copies.items() if key[0] in attempts}
            self._without_part = {key for key in self._without_part if key[0] in attempts}
        self._viewed = []

    def superseded(self, attempt: int, ranks: Collection[int]) -> bool:
        """Whether each of these ranks has had two snapshots in this attempt: then every rank of all nodes has one, since they make
        them in step."""
        older = any(key[0] != attempt for key in self._copies)
        return older and all(
            (attempt, rank) in self._without_part or len(self.steps(attempt, rank)) > 1 for rank in ranks
        )

    def view(self, attempt: int, step: int, copies: Mapping[int, MemoryCopy]) -> Path:
        """A checkpoint folder of these copies (rank → copy). Its large files are links to the memory."""
        folder = self._folder / f"step-{step:08d}-attempt-{attempt:04d}"
        shutil.rmtree(self._folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._viewed = list(copies.values())
        for copy in self._viewed:
            found = copy.read()
            if found is None:
                raise OSError("a part of it is not complete")
            record, small = found
            if not all(map(is_file_name, (record.file, *small))):
                raise OSError(f"the record of rank {record.rank} names no file in a folder")
            (folder / record.file).symlink_to(f"/proc/{os.getpid()}/fd/{copy.buffer}")
            for name, content in small.items():
                (folder / name).write_bytes(content)
        return folder

    def close(self) -> None:
        """Free all memory."""
        self.keep_only(())
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # other nodes' are in it
            self._folder.parent.rmdir()


def copied(record: MemoryRecord, small: Mapping[str, bytes], buffer: int, seal: bytes) -> MemoryCopy:
    """A snapshot that came from another node: its record, its small files, and a memory file of its tensors with the digest `seal`."""
    file = RecordFile()
    file.complete(record, small)
    file.seal(seal)
    return MemoryCopy(buffer, file.fd)
