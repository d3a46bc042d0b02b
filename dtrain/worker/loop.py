"""The training loop of a worker: sampling, steps, reports, evaluation, checkpoints, and leaving when it is asked to.

It knows no framework: a training backend does the numbers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.api.reports import EndedEarly, LoopPhase
from dtrain.api.strategy import WorkerContext
from dtrain.api.training_backend import (
    Fetch,
    NonFiniteGradient,
    NonFiniteLoss,
    StepNumber,
    TrainingBackend,
    nothing_to_fetch,
)
from dtrain.checkpoint.factory import store_of
from dtrain.common import hooks
from dtrain.common.errors import UserError
from dtrain.data.batches import Batches
from dtrain.data.randomness import seed_all, seed_host
from dtrain.data.sampler import OPTIMIZERS, UNKNOWN_SIZE, Sampler, step_seed
from dtrain.data.stream import Stream
from dtrain.job import entrypoint
from dtrain.record.folder import RunDir
from dtrain.worker import arithmetic, objective, operation_log, whole_set
from dtrain.worker import task as tasks
from dtrain.worker.checkpoint_writer import CheckpointWriter
from dtrain.worker.context import Context, Leaving
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.debugger import Debugger
from dtrain.worker.early_stopping import EarlyStopping
from dtrain.worker.step_guard import RollBack, StepGuard
from dtrain.worker.step_report import Report, Unreported
from dtrain.worker.task import EVAL, TRAIN, Task
from dtrain.worker.task_attributes import TaskAttributes, owners_of
from dtrain.worker.trainer import Trainer

STOP_WHEN = "dtrain_stop_when"
"""Name under which the state of `train.stop_when` is registered."""
Failed = Callable[[Exception], None]
MISTAKES = (UserError, TypeError, NameError, AttributeError, ImportError)
"""Errors of `metrics_of` with a few samples that it would have with all of them, too; others may want more samples."""


def run(
    run: RunDir,
    context: WorkerContext,
    backend: TrainingBackend,
    channel: ControlChannel,
    debugger: Debugger,
    checkpoint: str | None,
    step: int,
    memory: str = "",
) -> None:
    """Run the job's task or function to its end, or to the step that all ranks agreed to leave at; from a checkpoint of this name, or
    from an in-memory one in the folder `memory`."""
    job, attempt = context.job, context.rendezvous.attempt
    store = store_of(run, job)
    folder = store.local_folder(checkpoint, attempt, whole=not backend.fetches) if checkpoint else None
    fetch: Fetch = nothing_to_fetch if memory else lambda folder, files: store.fetch(folder, attempt, files)
    if memory:
        folder = Path(memory)
    trainer = Trainer(
        run, context, backend, channel, debugger, CheckpointWriter(backend, channel, store, context, run, step), folder, step,
        from_memory=bool(memory), fetch=fetch,
    )  # fmt: skip
    try:
        hooks.reach("import")
        if job.function:
            _call(trainer, job.function, Path(job.folder))
        else:
            _train(trainer, tasks.of_job(job))
    except RollBack:
        channel.report(LoopPhase(stepping=False))
        trainer.writer.finish()  # the newer the last checkpoint is, the better
    except Exception:
        trainer.writer.settle()
        raise


def _call(trainer: Trainer, function: str, folder: Path) -> None:
    """A function of the user's; whatever way it leaves its loop, the state of its last step is saved."""
    seed_all(trainer.train.seed)
    called = entrypoint.load(function, folder)
    context = Context(trainer, tasks.name_of(function), owners_of(called))
    try:
        called(context)
    except Leaving:
        return
    context.finish()


def _train(trainer: Trainer, task: Task) -> None:
    backend, train = trainer.backend, trainer.train
    hooks.reach("build")
    model, _ = backend.build(task, train)
    data = task.batches(TRAIN)
    assert data is not None, "only held-out data may be missing"
    held_out = task.batches(EVAL)
    sampler = Sampler(data.size, train)
    beginning = trainer.register(data)
    stopping = EarlyStopping(train.stop_when) if train.stop_when else None
    if stopping:
        backend.register(STOP_WHEN, stopping)
    trainer.begin()
    trainer.keep_beginning(beginning)
    unreported = Unreported(trainer)
    TaskAttributes(owners_of(task.inner), task.name, model, trainer)
    trainer.restore_last()
    guard = StepGuard(trainer, sampler)
    guard.begin(task)
    began = time.perf_counter()
    if train.sanity_check and not trainer.checkpoint:
        _try_out(trainer, task, data, held_out, sampler)
    fingerprints = backend.fingerprints() if train.exact else []
    if fingerprints and trainer.rank == 0:
        for text in arithmetic.warnings(fingerprints, trainer.run.arithmetic):
            trainer.warn(text)
    trainer.announce(sampler.total_steps, sampler.size, time.perf_counter() - began)
    trainer.warn_about(data)
    if task.note and trainer.rank == 0:
        trainer.warn(task.note)
    trainer.channel.listen()
    trainer.channel.report(LoopPhase(stepping=True))
    report, done, ended = Report(trainer, sampler.total_steps, unreported), trainer.first_step, ""
    for step, values in _steps(trainer, task, data, sampler, guard):
        done = step + 1
        try:
            report.count(done, values)
            if held_out and done < sampler.total_steps and trainer.due(done, sampler.total_steps, train.evaluate_every):
                with trainer.no_steps():
                    found = _evaluate(trainer, task, held_out, sampler, report, done)
                ended = stopping.reason(done, found) if stopping else ""
            trainer.after_step(done, sampler.total_steps)
            if done == train.until and done < sampler.total_steps:
                ended = ended or f"train.until is {done}"
        except NonFiniteLoss as error:
            raise guard.loss_error(error, step) from None
        except NonFiniteGradient as error:
            raise guard.gradient_error(error, step) from None
        if ended:
            trainer.save(done)
            trainer.channel.report(EndedEarly(done, ended))
            break
    trainer.channel.report(LoopPhase(stepping=False))
    trainer.finish_saving(done)
    if done == sampler.total_steps or ended:
        _conclude(trainer, task, None if ended else held_out, sampler, report)


def _conclude(
    trainer: Trainer, task: Task, held_out: Batches | Stream | None, sampler: Sampler, report: Report
) -> None:
    """Evaluate, if that is still to be done, and hand over the trained model. Every rank's part of the last checkpoint is
    written before: whatever goes wrong in the user's code now, the trained weights are on disk."""
    backend = trainer.backend
    backend.mean({})
    if held_out:
        _evaluate(trainer, task, held_out, sampler, report, sampler.total_steps)
    if hasattr(task, "finish"):
        model = backend.whole()
        if trainer.rank == 0:
            task.finish(model)


def _evaluate(
    trainer: Trainer, task: Task, held_out: Batches | Stream, sampler: Sampler, report: Report, done: int
) -> dict[str, float]:
    began = time.perf_counter()
    hooks.reach("evaluation", done)
    values = _values(trainer, task, lambda: trainer.held_out(held_out, sampler.shard_size))
    report.evaluated(done, values, time.perf_counter() - began)
    trainer.require_metrics(values)
    return values


def _values(
    trainer: Trainer, task: Task, batches: Callable[[], Iterable[tuple[Any, int]]], failed: Failed | None = None
) -> dict[str, float]:
    """Collective. All metrics of held-out batches; what `metrics_of` raises goes to `failed`, if there is one, and there are none then."""
    backend, name = trainer.backend, f"{task.name}.metrics_of"
    if not hasattr(task, "metrics_of"):
        return backend.evaluate(batches())
    means = backend.evaluate(batches()) if hasattr(task, "metrics") else {}
    of_all = whole_set.metrics(backend, batches(), task.outputs, task.metrics_of, name, failed)
    return means | of_all if of_all else {}


def _try_out(
    trainer: Trainer, task: Task, data: Batches | Stream, held_out: Batches | Stream | None, sampler: Sampler
) -> None:
    """Call once, before the first step, what is otherwise called late: `schedule` at the end of the run, and `metrics` and `metrics_of`
    on one batch of held-out data; and compare the loss of a batch with those of its halves. Nothing is kept of it."""
    for text in task.doubts(sampler.total_steps):
        trainer.warn(text)
    divided = (trainer.train.shards or 1) > 1
    if trainer.rank == 0 and divided and isinstance(data, Batches) and not hasattr(task, "train_step"):
        trainer.warn(objective.doubt(trainer.backend, data, trainer.train, task.name))
    if held_out:
        size = sampler.shard_size if held_out.size == UNKNOWN_SIZE else min(sampler.shard_size, held_out.size)
        batches = [(held_out.fetch(np.arange(size)), size)]

        def failed(error: Exception) -> None:
            if isinstance(error, MISTAKES):
                raise error

        if values := _values(trainer, task, lambda: batches, failed):
            trainer.require_metrics(values)


def _steps(
    trainer: Trainer, task: Task, data: Batches | Stream, sampler: Sampler, guard: StepGuard
) -> Iterator[tuple[int, Any]]:
    """Do the steps one by one: (step, loss or named numbers of this worker's shards; none of a step that is left out)."""
    ledger, gradients, shards, seed = (
        trainer.open_ledger(),
        trainer.open_gradient_ledger(),
        trainer.shards,
        trainer.train.seed,
    )
    passes = shards[:1] if hasattr(task, "train_step") else shards
    sizes = sampler.sizes(shards)
    if len(passes) < len(shards):
        sizes = [sum(sizes)]
    trainer.backend.weigh([size * trainer.world_size / trainer.train.global_batch for size in sizes])

    def fetch(step: int) -> list[Any]:
        begins = itertools.accumulate(sizes[:-1], initial=sampler.begin(step, shards.start))
        return [data.fetch(sampler.indices(begin, size), begin) for begin, size in zip(begins, sizes, strict=True)]

    numbers = range(trainer.first_step, sampler.total_steps)
    with closing(trainer.training_batches(data, fetch, numbers, sampler)) as fetched:
        for step, begin, indices in trainer.upcoming(sampler, trainer.first_step):
            batches, values = fetched.get(step), {}
            if not guard.passes_over(step):
                seeds = [step_seed(seed, step, shard) for shard in passes]
                seed_host(seeds[0])
                trainer.backend.seed_optimizers(step_seed(seed, step, OPTIMIZERS))
                rate = task.factor(step, sampler.total_steps)
                logged = operation_log.around(step, trainer.backend, shards.start)
                with guard.watching(step, batches, seeds), logged:
                    values = trainer.backend.step(batches, seeds, rate, StepNumber(step, sampler.total_steps))
            ledger.add(step, begin, indices, guard.left_out, data.content if isinstance(data, Stream) else None)
            if gradients and not guard.left_out:
                gradients.add(step, shards, trainer.backend.gradient_checksums())
            yield step, {} if guard.left_out else values
