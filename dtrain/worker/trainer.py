"""The tools of the training of one worker, for tasks and functions alike: steps, reports, checkpoints, and leaving."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.api.reports import LeftAtStep, LoopPhase
from dtrain.api.strategy import WorkerContext
from dtrain.api.training_backend import Fetch, TrainingBackend, nothing_to_fetch
from dtrain.common import hooks
from dtrain.common.errors import UsageError, UserError, nearest
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.sizes import memory_bytes
from dtrain.data.batches import Batches
from dtrain.data.prefetch import DataWait, Prefetcher, PrefetchSettings
from dtrain.data.sampler import UNKNOWN_SIZE, Indices, Sampler, own_shards
from dtrain.data.stream import OwnPart, Stream, StreamState
from dtrain.job.job import Train
from dtrain.launch import initial_weights
from dtrain.record.events import TrainingStarted, UserWarned
from dtrain.record.folder import RunDir
from dtrain.record.gradient_ledger import GradientLedger
from dtrain.record.sample_ledger import Ledger
from dtrain.weights import initial
from dtrain.worker import same_data
from dtrain.worker.checkpoint_writer import CheckpointWriter
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.debugger import Debugger
from dtrain.worker.profiling import Profiling
from dtrain.worker.step_clock import StepClock, Stopwatch

MOST_SILENT_SECONDS = 60.0
"""A data worker that takes longer for a batch is worth a line in the log."""
STREAM_NAME = "dtrain_stream"
"""Name under which a stream's state is registered."""
SPLIT_NAME = "dtrain_sharded"
"""Name under which the number of workers is registered that a stream is split among."""
BEGINNING_NAME = "dtrain_data"
"""Name under which it is registered what the data was when the run began."""
STREAM_STATE_STEPS = 100
"""Steps between two states of a stream if the recipe has no `checkpoint.every_steps`."""


@dataclass(frozen=True)
class Trainer:
    """Run folder, training backend, control channel and checkpoint schedule of one worker in one attempt."""

    run: RunDir
    context: WorkerContext
    backend: TrainingBackend
    channel: ControlChannel
    debugger: Debugger
    writer: CheckpointWriter
    checkpoint: Path | None
    first_step: int
    fetch: Fetch = nothing_to_fetch
    """Gets files of the checkpoint that are not on this node."""
    from_memory: bool = False
    """The attempt goes on from an in-memory checkpoint: what it has is to be on disk soon."""
    data_wait: DataWait = field(default_factory=DataWait)
    """Waits of the training for data; evaluations do not count."""
    saving: Stopwatch = field(default_factory=Stopwatch)
    """How long the training stood still for checkpoints."""

    @property
    def train(self) -> Train:
        """The numbers of the loop."""
        return self.context.job.train

    @property
    def rank(self) -> int:
        """Rank of this worker."""
        return self.context.rank_info.rank

    @property
    def world_size(self) -> int:
        """Worker processes of the attempt."""
        return self.context.rank_info.world_size

    @property
    def shards(self) -> range:
        """Shards of this worker."""
        rank_info = self.context.rank_info
        return own_shards(self.train.shards or 1, rank_info.rank, rank_info.world_size)

    def open_ledger(self) -> Ledger:
        """The record of what this worker trains on in this attempt."""
        return Ledger(self.run.ledger(self.context.rendezvous.attempt, self.rank))

    def open_gradient_ledger(self) -> GradientLedger | None:
        """The checksums of its gradients in this attempt, for `train.exact`."""
        if not self.train.exact:
            return None
        return GradientLedger(self.run.gradient_ledger(self.context.rendezvous.attempt, self.rank))

    def announce(self, total_steps: int, samples: int | None, sanity_check_seconds: float = 0.0) -> None:
        """Tell how far this run goes; one rank is enough."""
        if self.rank == 0:
            checked = round(sanity_check_seconds, 4)
            self.channel.report(
                TrainingStarted(
                    step=self.first_step,
                    total_steps=total_steps,
                    samples=samples,
                    sanity_check_seconds=checked,
                    began=time.time(),
                )
            )

    def warn(self, text: str) -> None:
        """Tell the user something once, in the live view and the summary; one rank is enough."""
        if text and self.rank == 0:
            self.channel.report(UserWarned(text=text))

    @property
    def state_every(self) -> int:
        """Steps between two states of a stream that are kept for checkpoints."""
        return self.context.job.checkpoint.steps or STREAM_STATE_STEPS

    def register(self, data: Batches | Stream) -> same_data.Beginning:
        """Collective. Require that every rank has this data, or samples of its own where the recipe says so, and keep the state of a
        stream that has one in the checkpoints; returns what the data is now, for `keep_beginning`."""
        first_time = self.world_size > 1 and not self.checkpoint
        beginning = same_data.Beginning(data, sharded=self.context.job.data.sharded)
        if self.context.job.data.sharded:
            if not isinstance(data, Stream):
                raise UserError(f"{data.name} gave no stream: data.sharded is for streams that are split by rank")
            sampler = Sampler(UNKNOWN_SIZE, self.train)
            first, count = sampler.begin(0, self.shards.start), sum(sampler.sizes(self.shards))
            data.read_own(OwnPart(self.rank, self.train.global_batch, first, count))
            self.backend.register(SPLIT_NAME, same_data.Split(data.name, self.world_size))
            if first_time:
                same_data.require_split(data, self.backend)
        elif first_time:
            same_data.require(beginning, self.backend)
        if isinstance(data, Stream) and data.has_state:
            self.backend.register(STREAM_NAME, data)
        return beginning

    def keep(self, name: str, thing: Any) -> None:
        """Collective, after `begin`. Keep an object's state in the checkpoints from now on, unless the one that the run goes on from was
        written by an older dtrain, which knew no such thing."""
        if not self.checkpoint or name in self.backend.unclaimed():
            self.backend.register(name, thing)

    def keep_beginning(self, beginning: same_data.Beginning) -> None:
        """Collective, after `begin`. Compare the data with that which the run began with."""
        self.keep(BEGINNING_NAME, beginning)
        self.warn(beginning.doubt)

    def warn_about(self, data: Batches | Stream) -> None:
        """Warn about the properties of this data that the user may not expect under the run's numbers."""
        self.warn(data.note)
        if data.size != UNKNOWN_SIZE and data.size < self.train.global_batch:
            self.warn(
                f"the global batch ({self.train.global_batch}) is larger than the data set ({data.size} samples): "
                "every step trains on samples more than once"
            )

    def begin(self) -> None:
        """Collective, after the model was built: load the checkpoint that the run goes on from or, at the beginning of a run, give
        the model the weights that the recipe names (`init_from`)."""
        if self.checkpoint:
            self.backend.load(self.checkpoint, self.fetch)
            return
        begins = initial.of_job(self.context.job)
        if begins is None:
            return
        name = initial_weights.told(self.context.job)
        left = self.backend.start_from(partial(initial.read, begins, self.run.path), name, strict=begins.strict)
        if left is None:
            raise UserError(
                f"init_from: the strategy '{self.context.job.strategy.name}' cannot begin with given weights",
                "Leave it out, or load them in the model's own code.",
            )
        print(f"the training begins with the weights of {name}")
        if left:
            self.warn(f"init_from: {left.told()}")

    def restore_last(self) -> None:
        """Collective, before the first step, when everything with a state exists."""
        if edited := self.backend.restore_last():
            self.warn(f"since the run began, the optimizer's settings were edited: {', '.join(edited)}")

    @contextmanager
    def no_steps(self) -> Iterator[None]:
        """Around what keeps dtrain's own loop from steps for a while that steps say nothing about."""
        if self.context.job.function:
            yield
            return
        self.channel.report(LoopPhase(stepping=False))
        yield
        self.channel.report(LoopPhase(stepping=True))

    def due(self, done: int, total: int, every: int | None) -> bool:
        """Whether something that happens every `every` steps, and at the end, is due after `done` steps."""
        return done == total or bool(every and done % every == 0)

    def after_step(self, done: int, total: int) -> None:
        """Collective. Save if a checkpoint is due; raise what went wrong in the one before."""
        self.writer.check()
        wanted = self.context.job.checkpoint
        evaluated = wanted.keep_best is not None and self.due(done, total, self.train.evaluate_every)
        first = self.from_memory and done == self.first_step + 1
        if self.due(done, total, wanted.steps) or evaluated or first or self._time_is_up(done):
            self.save(done)
        elif self.writer.memory.schedule.due(done):
            with self.saving, self.no_steps() if self.writer.memory.schedule.measuring else nullcontext():
                self.writer.memory.keep(done)

    def save(self, done: int) -> None:
        """Collective. Begin to save the state after so many steps."""
        with self.saving, self.no_steps():
            self.writer.begin(done)

    def _time_is_up(self, done: int) -> bool:
        """Collective at every `log_every`-th step. Whether rank 0's clock says that the time of `every_minutes` is over."""
        minutes = self.context.job.checkpoint.every_minutes
        if not minutes or done % self.train.log_every:
            return False
        over = self.rank == 0 and self.writer.seconds_since >= minutes * 60
        return self.backend.mean({"over": float(over)})["over"] > 0

    def require_metrics(self, values: Mapping[str, float]) -> None:
        """Raise `UsageError` if an evaluation lacks a metric that the recipe decides by."""
        best, stop = self.context.job.checkpoint.keep_best, self.train.stop_when
        for key, wanted in (("checkpoint.keep_best", best), ("train.stop_when", stop)):
            if wanted and wanted.metric not in values:
                raise UsageError(
                    f"{key}: there is no metric {wanted.metric!r} in an evaluation, which has {', '.join(values)}. "
                    + nearest(wanted.metric, list(values))
                )

    def upcoming(self, sampler: Sampler, first_step: int) -> Iterator[tuple[int, int, Indices]]:
        """The steps from `first_step` on: (step, position of this worker's first sample, its samples). Ends early, with
        the state saved, if the ranks agreed to leave."""
        count = sum(sampler.sizes(self.shards))
        profiling = Profiling(self.run, self.rank, self.backend, self.channel)
        clock = self.step_clock()
        for step in range(first_step, sampler.total_steps):
            profiling.before(step)
            self.debugger.before(step, self.backend)
            if not self.channel.may_begin(step):
                self.leave(step)
                return
            hooks.reach("step", step)
            begin = sampler.begin(step, self.shards.start)
            yield step, begin, sampler.indices(begin, count)
            clock.done(step + 1)

    def step_clock(self) -> StepClock:
        """Of a loop that is about to begin."""
        return StepClock(self.channel, self.backend, self.data_wait, self.saving, self.world_size)

    def training_batches(
        self, data: Batches | Stream, fetch: Callable[[int], Any], numbers: range, sampler: Sampler
    ) -> Prefetcher:
        """Return the source of the batches of these steps; the content of a stream's comes with them, and where it is wanted its state."""
        fetch = hooks.wrap_fetch(fetch)
        if not isinstance(data, Stream):
            return self.prefetcher(data, fetch, numbers, self.data_wait)

        def fetch_with_state(step: int) -> tuple[Any, int, StreamState | None]:
            data.content, done = 0, step + 1
            batch, content = fetch(step), data.content
            state = None if done % self.state_every else data.state_at(sampler.begin(done, 0))
            return batch, content, state

        def received(fetched: tuple[Any, int, StreamState | None]) -> Any:
            batch, data.content, state = fetched
            data.keep(state)
            return batch

        return self.prefetcher(data, fetch_with_state, numbers, self.data_wait, received)

    def prefetcher(
        self,
        data: Batches | Stream,
        fetch: Callable[[int], Any],
        numbers: range,
        wait: DataWait,
        received: Callable[[Any], Any] = lambda batch: batch,
    ) -> Prefetcher:
        """Return the source of the batches of these numbers, fetched ahead by data workers if the recipe wants it or
        it is worth it."""
        job = self.context.job
        forks = self.backend.forks_safely
        automatic = None if forks and not isinstance(data, Stream) else 0
        workers = automatic if job.data.workers == "auto" else job.data.workers
        if isinstance(data, Stream) and workers and not data.forks:
            self.warn(
                "no data workers are started: this stream cannot be begun anew in another process (a tf.data.Dataset "
                "has threads of its own; context.batches cannot make a generator or a stream with a state once more)"
            )
            workers = 0
        if data.in_memory:
            workers = 0
        cpus = job.resources.cpus_per_worker or len(os.sched_getaffinity(0)) // self.context.rank_info.local_world_size
        return Prefetcher(
            fetch,
            numbers,
            PrefetchSettings(
                workers=workers,
                ahead=job.data.prefetch,
                memory=memory_bytes(job.data.memory) or 0,
                cpus=max(1, cpus),
                silent_seconds=min(MOST_SILENT_SECONDS, job.recovery.hang_seconds / 2),
                close=(self.channel.fileno(),),
                first=self.data_wait.workers,
                warn=self.warn,
            ),
            wait,
            received,
        )

    def leave(self, step: int) -> None:
        """Collective. Save at the agreed step, unless that is what the attempt began with."""
        if step > self.first_step:
            self.writer.begin(step)
        self.finish_saving(step)
        self.channel.report(LeftAtStep(step))

    def finish_saving(self, done: int) -> None:
        """Collective. Wait until this worker's part of the last state is on disk; what an attempt began with in memory alone is, too."""
        if self.from_memory and done == self.first_step:
            self.save(done)
        self.writer.finish()

    def held_out(self, data: Batches | Stream, size: int) -> Iterator[tuple[Any, int]]:
        """Batches of held-out data for this rank, each with the number of samples that count: every rank gets as many
        batches, some of them fillers that do not count."""
        limit = self.train.evaluate_steps
        most = limit * self.train.global_batch if limit else None
        if isinstance(data, Stream):
            sharded = self.context.job.data.sharded
            yield from (
                self._own_parts(data, size, most) if sharded else data.one_epoch(size, self.rank, self.world_size, most)
            )
            return
        total = min(data.size, most or data.size)
        size = min(size, total)
        batches = math.ceil(total / size)

        def indices_of(turn: int) -> tuple[Indices, int]:
            number = turn * self.world_size + self.rank
            if number >= batches:
                return np.arange(size), 0
            indices = np.arange(number * size, min(total, (number + 1) * size))
            return indices, len(indices)

        def fetch(turn: int) -> Any:
            indices, _ = indices_of(turn)
            return data.fetch(indices, int(indices[0]))

        turns = range(math.ceil(batches / self.world_size))
        with closing(self.prefetcher(data, fetch, turns, DataWait())) as fetched:
            for turn in turns:
                yield fetched.get(turn), indices_of(turn)[1]

    def _own_parts(self, data: Stream, size: int, most: int | None) -> Iterator[tuple[Any, int]]:
        """Collective at each batch. Yield all of this rank's own stream, and fillers for as long as another rank has more."""
        limit = None if most is None else math.ceil(most / self.world_size)
        batches, last = data.one_epoch(size, 0, 1, limit), None
        while True:
            batch, count = next(batches, (last, 0))
            if self.backend.mean({"samples": float(count)})["samples"] == 0:
                return
            yield batch, count
            last = batch
