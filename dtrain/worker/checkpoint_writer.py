"""The worker's shard of a checkpoint: copy the state, then have it written while the training goes on."""

from __future__ import annotations

import shutil
import socket
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from dtrain.api.in_memory import StaysInMemory
from dtrain.api.reports import MemoryOffered, SaveFailed, ShardWritten, UserWarned
from dtrain.api.strategy import NonFiniteWeights, Snapshot, TrainingBackend, WorkerContext
from dtrain.checkpoint.kept_buffer import KeptBuffer
from dtrain.checkpoint.memory_record import MemoryRecord
from dtrain.checkpoint.store import CheckpointStore
from dtrain.common.errors import UserError
from dtrain.common.files import digest, flush_file
from dtrain.common.memory import granted_memory
from dtrain.run import fault_injection
from dtrain.run.folder import RunDir
from dtrain.spec.job import memory_bytes
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.memory_schedule import MemorySchedule

FULL_BYTES = 1 << 20
SETTLE_SECONDS = 10.0
"""A write that lasts longer may wait for storage that does not answer."""
MOST_PENDING = 2
"""Snapshots that are in memory at a time: one that is written, and one that waits for it."""
MEMORY_COPIES = 3
"""Buffers that in-memory checkpoints take: the newest one, the one that is written to disk, and the next."""


class CheckpointWriter:
    """Writes checkpoints one after the other; the supervisor commits each when every worker's shard is there."""

    def __init__(
        self,
        backend: TrainingBackend,
        channel: ControlChannel,
        store: CheckpointStore,
        context: WorkerContext,
        run: RunDir,
        first_step: int,
    ) -> None:
        self._backend = backend
        self._channel = channel
        self._store = store
        self._attempt = context.rendezvous.attempt
        self._rank = context.rank_info.rank
        self._ledger = run.ledger(self._attempt, self._rank)
        self._context = context
        settings = context.job.checkpoint
        self.memory = MemorySchedule(settings, first_step, self._rank, context.rank_info.world_size)
        self._memory_bytes = 0
        """Of this rank's part of an in-memory checkpoint."""
        self._offered: weakref.WeakSet[KeptBuffer] = weakref.WeakSet()
        self._seal_seconds = 0.0
        """For the digest of the newest one, beside the training."""
        self._told_empty = False
        self._memory_thread = ThreadPoolExecutor(1, thread_name_prefix="dtrain-memory")
        self._ignores = context.job.train.on_nonfinite == "ignore"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dtrain-save")
        self._pending: list[Future[None]] = []
        self._problem: UserError | None = None
        self._saved: int | None = None
        self._began = time.perf_counter()

    @property
    def seconds_since(self) -> float:
        """The last save of this attempt began, or the attempt did."""
        return time.perf_counter() - self._began

    def begin(self, step: int) -> None:
        """Collective. Copy the state of this step and start to write it; waits only if two others are not written yet."""
        if self._saved == step:
            return
        self._began = began = time.perf_counter()
        self._pending = [write for write in self._pending if not write.done()]
        wait(self._pending[: len(self._pending) + 1 - MOST_PENDING])
        self.check()
        try:
            fault_injection.reach("staging", step)
            snapshot = self._backend.snapshot()
        except OSError as error:  # no memory for the copy
            self._channel.report(SaveFailed(step, str(error)))
            return
        stall_seconds = time.perf_counter() - began
        self._saved = step
        kept = None
        if self.memory.active and isinstance(snapshot, StaysInMemory):
            kept = self._memory_thread.submit(self._keep, snapshot, step)
            self.memory.saved(step)
        folder = self._store.staging(self._attempt, step)
        self._pending.append(self._thread.submit(self._write, snapshot, folder, step, began, stall_seconds, kept))

    def keep(self, step: int) -> None:
        """Collective. Make an in-memory checkpoint of this step."""
        self.memory.begin(step)
        fault_injection.reach("in-memory", step)
        problem, room, snapshot = "", False, None
        try:
            snapshot = self._backend.snapshot()
            if isinstance(snapshot, StaysInMemory):
                kept = self._memory_thread.submit(self._keep, snapshot, step, release=True)
                if self.memory.measuring:
                    kept.result()
                problem = self._too_large() if self.memory.agrees else ""
                room = not problem
        except OSError as error:
            problem = error.strerror or str(error)
        size, seal_seconds = self._memory_bytes, self._seal_seconds
        short = self.memory.copied(self._backend, self._channel, size, seal_seconds, room=room)
        if problem and self.memory.measuring:
            print(f"there are no in-memory checkpoints: {problem}")
        if short and self._rank == 0 and isinstance(snapshot, StaysInMemory | None):
            problem = problem or f"{short} of the other workers have no memory for them (see their logs)"
            self._channel.report(UserWarned(f"there are no in-memory checkpoints: {problem}"))

    def _too_large(self) -> str:
        """Why this rank's part does not fit into its share of the node's memory for in-memory checkpoints; '' if it does."""
        info, settings = self._context.rank_info, self._context.job.checkpoint
        limit = memory_bytes(settings.memory_limit) if settings.memory_limit else granted_memory()[0] // 4
        share = (limit or 0) // info.local_world_size // (2 if info.nodes > 1 else 1)
        if MEMORY_COPIES * self._memory_bytes <= share:
            return ""
        return (
            f"{MEMORY_COPIES} copies of rank {info.rank}'s part of the state ({self._memory_bytes / 1e6:,.0f} MB each) do not fit "
            f"into the {share / 1e6:,.0f} MB that {socket.gethostname()} has for them (checkpoint.memory_limit)"
        )

    def _keep(self, snapshot: StaysInMemory, step: int, *, release: bool = False) -> None:
        """Say in shared memory that this snapshot is complete, as soon as it is."""
        part = snapshot.memory_part()
        if part is None:
            if not self._told_empty:
                self._told_empty = True
                self._channel.report(MemoryOffered())
            return
        buffer, size = part.buffer, part.buffer.size
        self._memory_bytes = size
        weights = [(one.name, one.begin, one.length, one.finite) for one in part.weights]
        small = {name: len(content) for name, content in part.small.items()}
        buffer.record.complete(MemoryRecord(step, self._rank, part.file, size, weights, small), part.small)
        buffer.step = step
        if buffer not in self._offered:
            self._offered.add(buffer)
            self._channel.report(MemoryOffered(buffer.fd, buffer.record.fd))
        if release:
            began = time.perf_counter()
            buffer.record.seal(digest(memoryview(buffer.memory)).digest())
            self._seal_seconds = time.perf_counter() - began
            buffer.free.set()

    def finish(self) -> None:
        """Wait for what is still to be written, and raise `UserError` if its weights are not finite."""
        wait(self._pending)
        self.check()

    def settle(self) -> None:
        """Give the writes under way some time to end, because this process is about to."""
        wait(self._pending, SETTLE_SECONDS)

    def check(self) -> None:
        """Raise `UserError` if weights that were to be saved are not finite; costs nothing."""
        if self._problem is not None and not self._ignores:
            raise self._problem

    def _write(
        self,
        snapshot: Snapshot,
        folder: Path,
        step: int,
        began: float,
        stall_seconds: float,
        kept: Future[None] | None,
    ) -> None:
        try:
            if kept:
                kept.result()
            folder.mkdir(parents=True, exist_ok=True)
            fault_injection.reach("writing", step)
            written = snapshot.write(folder)
            self._store.publish(self._attempt, step, written.files)
        except BaseException as error:  # noqa: BLE001  a full disk must not end the training, whatever the library makes of it
            if isinstance(error, NonFiniteWeights):
                self._problem = UserError(
                    f"the weights are not finite after {step} steps (rank {self._rank}: {error}): lower the learning "
                    "rate, or set train.clip_norm (train.on_nonfinite: ignore trains on)"
                )
            self._channel.report(SaveFailed(step, _why(error, folder)))
            return
        # A committed step whose record a power loss took would look like one that was skipped.
        flush_file(self._ledger)
        seconds = time.perf_counter() - began
        self._channel.report(ShardWritten(step, written.files, written.weights, seconds, stall_seconds))
        fault_injection.reach("commit", step)


def _why(error: BaseException, folder: Path) -> str:
    """The first line of an error; libraries that write archives do not always say that the disk is full."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if shutil.disk_usage(folder.parent).free < FULL_BYTES and "No space" not in text:
        return f"No space left on device ({text})"
    return text
