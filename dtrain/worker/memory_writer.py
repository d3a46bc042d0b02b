"""The worker's part of in-memory checkpoints: copies the state into shared memory and offers the buffers to the agent."""

from __future__ import annotations

import socket
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from dtrain.api.reports import MemoryOffered
from dtrain.api.strategy import WorkerContext
from dtrain.api.training_backend import Snapshot, TrainingBackend
from dtrain.checkpoint.kept_buffer import KeptBuffer
from dtrain.checkpoint.memory_record import MemoryRecord
from dtrain.common import hooks
from dtrain.common.files import digest
from dtrain.common.memory import granted_memory
from dtrain.common.sizes import memory_bytes
from dtrain.record.events import UserWarned
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.memory_schedule import MemorySchedule

COPIES = 3
"""Buffers that in-memory checkpoints take: the newest one, the one that is written to disk, and the next."""


class Prepare(Protocol):
    """What is to be done on all ranks before a snapshot."""

    def __call__(self, *, to_disk: bool) -> None: ...


class MemoryWriter:
    """Makes the in-memory checkpoints of one worker in one attempt."""

    def __init__(
        self, backend: TrainingBackend, channel: ControlChannel, context: WorkerContext, first_step: int
    ) -> None:
        self._backend = backend
        self._channel = channel
        self._info = context.rank_info
        self._settings = context.job.checkpoint
        self.schedule = MemorySchedule(self._settings, first_step, self._info.rank, self._info.world_size)
        self._bytes = 0
        """Size of this rank's part."""
        self._digest_seconds = 0.0
        """Time to compute the digest of the newest part, which the training does not wait for."""
        self._offered: weakref.WeakSet[KeptBuffer] = weakref.WeakSet()
        self._told_empty = False
        self.preparing: list[Prepare] = []
        """Called on all ranks before each snapshot; collective."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dtrain-memory")

    def snapshot(self, *, to_disk: bool = False) -> Snapshot:
        """Collective. Take a snapshot, and say what the user should know of it. Raises `OSError` if there is no memory for it."""
        for prepare in self.preparing:
            prepare(to_disk=to_disk)
        snapshot = self._backend.snapshot()
        if remark := self._backend.remark():
            print(f"dtrain: {remark}")
            if self._info.rank == 0:
                self._channel.report(UserWarned(text=remark))
        return snapshot

    def saved(self, snapshot: Snapshot, step: int) -> Future[None] | None:
        """A snapshot that is about to be written to disk is an in-memory checkpoint, too; wait for the future, if there is one, before
        its buffer is given back."""
        if not self.schedule.active or not self._backend.stays_in_memory:
            return None
        self.schedule.saved(step)
        return self._thread.submit(self._complete, snapshot, step)

    def keep(self, step: int) -> None:
        """Collective. Make an in-memory checkpoint of this step."""
        self.schedule.begin(step)
        hooks.reach("in-memory", step)
        problem, room, supported = "", False, True
        try:
            snapshot = self.snapshot()
            supported = self._backend.stays_in_memory
            if supported:
                completed = self._thread.submit(self._complete, snapshot, step, release=True)
                if self.schedule.measuring:
                    completed.result()
                problem = self._too_large() if self.schedule.agrees else ""
                room = not problem
        except OSError as error:
            problem = error.strerror or str(error)
        short = self.schedule.copied(self._backend, self._channel, self._bytes, self._digest_seconds, room=room)
        if problem and self.schedule.measuring:
            print(f"there are no in-memory checkpoints: {problem}")
        if short and supported and self._info.rank == 0:
            problem = problem or f"{short} of the other workers have no memory for them (see their logs)"
            self._channel.report(UserWarned(text=f"there are no in-memory checkpoints: {problem}"))

    def _too_large(self) -> str:
        """Why this rank's part does not fit into its share of the node's memory for in-memory checkpoints; '' if it does."""
        limit = self._settings.memory_limit
        most = memory_bytes(limit) if limit else granted_memory()[0] // 4
        share = (most or 0) // self._info.local_world_size // (2 if self._info.nodes > 1 else 1)
        if COPIES * self._bytes <= share:
            return ""
        return (
            f"{COPIES} copies of rank {self._info.rank}'s part of the state ({self._bytes / 1e6:,.0f} MB each) do not fit "
            f"into the {share / 1e6:,.0f} MB that {socket.gethostname()} has for them (checkpoint.memory_limit)"
        )

    def _complete(self, snapshot: Snapshot, step: int, *, release: bool = False) -> None:
        """Mark a snapshot as complete in its record, as soon as it is. With `release`, also add its digest and give the buffer back."""
        part = snapshot.memory_part()
        if part is None:
            if not self._told_empty:
                self._told_empty = True
                self._channel.report(MemoryOffered())
            return
        buffer = part.buffer
        self._bytes = buffer.size
        weights = [(one.name, one.begin, one.length, one.finite) for one in part.weights]
        small = {name: len(content) for name, content in part.small.items()}
        record = MemoryRecord(step, self._info.rank, part.file, buffer.size, weights, small)
        buffer.record.complete(record, part.small)
        buffer.step = step
        if buffer not in self._offered:
            self._offered.add(buffer)
            self._channel.report(MemoryOffered(buffer.fd, buffer.record.fd))
        if release:
            began = time.perf_counter()
            buffer.record.seal(digest(memoryview(buffer.memory)).digest())
            self._digest_seconds = time.perf_counter() - began
            buffer.free.set()
