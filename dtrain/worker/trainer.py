"""What the steps of one worker share, tasks' and functions' alike: run folder, backend, ledger, checkpoint schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtrain.api.strategy import TrainingBackend, WorkerContext
from dtrain.data.sampler import Indices, Sampler, own_shards
from dtrain.run.folder import RunDir
from dtrain.run.sample_ledger import Ledger
from dtrain.spec.job import Train
from dtrain.worker.checkpoint_writer import CheckpointWriter
from dtrain.worker.control_channel import ControlChannel


@dataclass(frozen=True)
class Trainer:
    """What the steps of one worker need, tasks' and functions' alike."""

    run: RunDir
    joining: WorkerContext
    session: TrainingBackend
    link: ControlChannel
    saver: CheckpointWriter
    checkpoint: Path | None
    first_step: int

    @property
    def train(self) -> Train:
        """The numbers of the loop."""
        return self.joining.job.train

    @property
    def shards(self) -> range:
        """This worker's own shards."""
        place = self.joining.place
        return own_shards(self.train.shards or 1, place.rank, place.world_size)

    def open_ledger(self) -> Ledger:
        """The record of what this worker trains on in this attempt."""
        return Ledger(self.run.ledger(self.joining.peers.attempt, self.joining.place.rank))

    def announce(self, sampler: Sampler) -> None:
        """Tell how far this run goes; one rank is enough."""
        if self.joining.place.rank == 0:
            self.link.say("training", step=self.first_step, total_steps=sampler.total_steps, samples=sampler.size)

    def due(self, done: int, total: int, every: int | None) -> bool:
        """Whether something done every so many steps, and at the end, is due after `done` steps."""
        return done == total or bool(every and done % every == 0)

    def after_step(self, done: int, total: int) -> None:
        """Collective. Save where it is due."""
        if self.due(done, total, self.joining.job.checkpoint.every_steps):
            self.saver.begin(done)

    def upcoming(self, sampler: Sampler) -> Iterator[tuple[int, int, Indices]]:
        """The steps still to be done: (step, position of this worker's first sample, its samples). Ends early, with the
        state saved, where the ranks agreed to leave."""
        count = len(self.shards) * sampler.shard_size
        for step in range(self.first_step, sampler.total_steps):
            if not self.link.may_begin(step):
                self.leave(step)
                return
            begin = sampler.begin(step, self.shards.start)
            yield step, begin, sampler.indices(begin, count)

    def leave(self, step: int) -> None:
        """Collective. Save at the agreed step, unless that is what the attempt began with."""
        if step > self.first_step:
            self.saver.begin(step)
        self.saver.finish()
        self.link.say("left", step=step)
