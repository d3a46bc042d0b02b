"""The training loop of a worker: sampling, steps, reports, evaluation, checkpoints, and leaving when it is asked to.

It knows no framework: a session does the numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.api.strategy import TrainingBackend, WorkerContext
from dtrain.checkpoint.factory import store_of
from dtrain.data.sampler import Sampler, fetch, length, step_seed
from dtrain.run.folder import RunDir
from dtrain.spec import entrypoint
from dtrain.worker.checkpoint_writer import CheckpointWriter
from dtrain.worker.context import Context
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.trainer import Trainer


def run(
    run: RunDir,
    joining: WorkerContext,
    session: TrainingBackend,
    link: ControlChannel,
    checkpoint: str | None,
    step: int,
) -> None:
    """Run the job's task or function to its end, or to the step that all ranks agreed to leave at."""
    job, attempt = joining.job, joining.peers.attempt
    store = store_of(run, job)
    folder = store.local_folder(checkpoint, attempt) if checkpoint else None
    trainer = Trainer(run, joining, session, link, CheckpointWriter(session, link, store, attempt), folder, step)
    if job.function:
        entrypoint.load(job.function, Path(job.folder))(Context(trainer))
        trainer.saver.finish()
        return
    task = entrypoint.load(job.task or "", Path(job.folder))(**job.params)
    _train(trainer, task)


def _train(trainer: Trainer, task: Any) -> None:
    session, train = trainer.session, trainer.train
    model, _ = session.build(task, train)
    data = task.data("train")
    sampler = Sampler(length(data), train)
    if trainer.checkpoint:
        session.load(trainer.checkpoint)
    trainer.announce(sampler)
    trainer.link.listen()
    report = _Report(trainer, sampler)
    held_out = task.data("eval")
    for step, losses in _steps(trainer, task, data, sampler):
        done = step + 1
        report.count(done, losses)
        if held_out is not None and trainer.due(done, sampler.total_steps, train.evaluate_every):
            values = session.evaluate(_evaluation(held_out, sampler.shard_size, trainer.joining.place))
            report.evaluated(done, values)
        trainer.after_step(done, sampler.total_steps)
    else:
        trainer.saver.finish()
        if hasattr(task, "finish") and report.done == sampler.total_steps:
            task.finish(model)


def _steps(trainer: Trainer, task: Any, data: Any, sampler: Sampler) -> Iterator[tuple[int, Any]]:
    """Do the steps one by one: (step, loss of this worker's shards)."""
    ledger, shards, seed = trainer.open_ledger(), trainer.shards, trainer.train.seed
    schedule = getattr(task, "schedule", None)
    for step, begin, indices in trainer.upcoming(sampler):
        batches = [fetch(data, part) for part in np.split(indices, len(shards))]
        rate = schedule(step, sampler.total_steps) if schedule else 1.0
        loss = trainer.session.step(batches, [step_seed(seed, step, shard) for shard in shards], rate)
        ledger.add(step, begin, indices)
        yield step, loss


def _evaluation(data: Any, size: int, place: Any) -> Iterator[tuple[Any, int]]:
    """Batches of held-out data dealt out to the ranks; every rank gets as many, some of them fillers that do not count."""
    total = length(data)
    size = min(size, total)
    batches = math.ceil(total / size)
    for turn in range(math.ceil(batches / place.world_size)):
        number = turn * place.world_size + place.rank
        real = number < batches
        indices = np.arange(number * size, min(total, (number + 1) * size)) if real else np.arange(size)
        yield fetch(data, indices), len(indices) if real else 0


class _Report:
    """Loss and speed, averaged over the ranks and said by one of them."""

    def __init__(self, trainer: Trainer, sampler: Sampler) -> None:
        self._trainer = trainer
        self._sampler = sampler
        self._since = time.perf_counter()
        self._counted = 0
        self.done = trainer.first_step

    def count(self, done: int, loss: Any) -> None:
        """Collective where a report is due: one more step is done."""
        self.done = done
        self._counted += 1
        train = self._trainer.train
        if not self._trainer.due(done, self._sampler.total_steps, train.log_every):
            return
        values = self._trainer.session.mean({"loss": float(loss)})
        now = time.perf_counter()
        speed = self._counted * train.global_batch / max(1e-9, now - self._since)
        self._since, self._counted = now, 0
        self._say("metrics", step=done, values=values, samples_per_second=round(speed, 1))

    def evaluated(self, done: int, values: dict[str, float]) -> None:
        """An evaluation is done; its time does not count as training."""
        self._say("evaluation", step=done, values=values)
        self._since, self._counted = time.perf_counter(), 0

    def _say(self, word: str, **fields: Any) -> None:
        if self._trainer.joining.place.rank == 0:
            self._trainer.link.say(word, **fields)
