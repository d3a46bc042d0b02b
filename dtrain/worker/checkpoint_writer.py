"""The worker's shard of a checkpoint: copy the state, then have it written while the training goes on."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from dtrain.api.reports import SaveFailed, ShardWritten
from dtrain.api.strategy import WorkerContext
from dtrain.api.training_backend import NonFiniteWeights, Snapshot, TrainingBackend
from dtrain.checkpoint.store import CheckpointStore
from dtrain.common import hooks
from dtrain.common.errors import UserError
from dtrain.common.files import flush_file
from dtrain.record.folder import RunDir
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.memory_writer import MemoryWriter

FULL_BYTES = 1 << 20
SETTLE_SECONDS = 10.0
"""A write that lasts longer may wait for storage that does not answer."""
MOST_PENDING = 2
"""Snapshots that are in memory at a time: one that is written, and one that waits for it."""


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
        self.memory = MemoryWriter(backend, channel, context, first_step)
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
        self._backend.check_replicas()
        try:
            hooks.reach("staging", step)
            snapshot = self.memory.snapshot(to_disk=True)
        except OSError as error:  # no memory for the copy
            self._channel.report(SaveFailed(step, str(error)))
            return
        stall_seconds = time.perf_counter() - began
        self._saved = step
        kept = self.memory.saved(snapshot, step)
        folder = self._store.staging(self._attempt, step)
        self._pending.append(self._thread.submit(self._write, snapshot, folder, step, began, stall_seconds, kept))

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
            hooks.reach("writing", step)
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
        hooks.reach("commit", step)


def _why(error: BaseException, folder: Path) -> str:
    """The first line of an error; libraries that write archives do not always say that the disk is full."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if shutil.disk_usage(folder.parent).free < FULL_BYTES and "No space" not in text:
        return f"No space left on device ({text})"
    return text
