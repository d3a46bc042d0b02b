"""The context of a `function:`, for people with a training loop of their own who want the launcher's checkpoints and
recovery."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np

from dtrain.api.reports import LoopLeft
from dtrain.api.training_backend import TrainingBackend
from dtrain.common import hooks
from dtrain.common.errors import UserError
from dtrain.data.batches import Collate
from dtrain.data.randomness import seed_host
from dtrain.data.sampler import OPTIMIZERS, UNKNOWN_SIZE, Sampler, step_seed
from dtrain.data.stream import Stream, opened
from dtrain.job import task_answers
from dtrain.record.events import Evaluation
from dtrain.record.gradient_ledger import GradientLedger
from dtrain.record.sample_ledger import Ledger
from dtrain.worker import whole_set
from dtrain.worker.step_report import Report, Unreported
from dtrain.worker.task_attributes import TaskAttributes
from dtrain.worker.trainer import Trainer

Builder = Callable[[], Any]
Recipe = Builder | tuple[Builder, Callable[[Any], Any]]


class Leaving(BaseException):
    """Ends a function with a loop of its own that was asked to stop; its state is saved. Not an `Exception`, so that the
    user's own handlers let it pass."""


class Context:
    """`train(context)`: prepare models, iterate batches, report steps.

    ::

        def train(context):
            model, optimizer = context.prepare(build_model, build_optimizer)
            for batch in context.batches(data):
                loss = loss_of(model, batch)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                context.report(loss=loss)

    A step that was begun is done when the loop asks for the next batch: then it enters the ledger, and a checkpoint
    is made if one is due. The iteration ends early if the run is asked to stop; return then. A loop that is left early
    (`break`, `return`) counts the step under way as done and saves its state.

    Several models have names, and so has everything else with a state of its own::

        made = context.prepare(g=(Generator, optimizer_of_g), d=(Discriminator, optimizer_of_d))
        g, g_optimizer = made["g"]
        ema = context.register("ema", EMA(g))
    """

    splits = ("train", "eval")
    """The names that tasks are asked for their data by."""

    def __init__(self, trainer: Trainer, name: str, owners: Mapping[str, Any]) -> None:
        self._trainer = trainer
        self._name = name
        self._owners, self._models = owners, dict[str, Any]()
        self._values: dict[str, Any] = {}
        self._prepared = False
        self._done = trainer.first_step
        self._under_way = False
        self._left = False
        self._reason = ""
        self._sampler: Sampler | None = None
        self._report: Report | None = None
        self._ledger: Ledger | None = None
        self._gradients: GradientLedger | None = None
        self._content: int | None = None
        self._summed = False
        """The gradients of the step under way are those of `shards`."""
        rank_info = trainer.context.rank_info
        self.params: dict[str, Any] = trainer.context.job.params
        self.rank = rank_info.rank
        self.world_size = rank_info.world_size
        self.backend: TrainingBackend = trainer.backend

    @property
    def step(self) -> int:
        """Steps done, which is the number of the step under way, counted from 0."""
        return self._done

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; if the recipe says `epochs`, known from the first call of `batches` on."""
        if self._sampler:
            return self._sampler.total_steps
        steps = self._trainer.train.steps
        if steps is None:
            raise UserError(
                f"{self._name}: the total number of steps follows from train.epochs and the data: call context.batches "
                "first, or say train.steps in the recipe"
            )
        return steps

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete, by the first sample of the step under way; 0 before `batches`, and for a
        stream, whose length is not known."""
        sampler = self._sampler
        if sampler is None or sampler.size == UNKNOWN_SIZE:
            return 0
        return sampler.begin(self._done, self._trainer.shards.start) // sampler.size

    def prepare(
        self, model: Recipe | None = None, optimizer: Callable[[Any], Any] | None = None, **named: Recipe
    ) -> Any:
        """Collective, once. Build and wrap models and optimizers for the strategy, and load the checkpoint if the run goes
        on from one. All arguments are functions, since strategies that shard a model must build it themselves.

        `prepare(build_model, build_optimizer)` gives (model, optimizer). With names, each a pair of functions or, for a
        model that is not trained, one function, it gives name → (model, optimizer or None)."""
        if self._prepared:
            raise UserError(
                f"{self._name}: context.prepare was called twice; give all models to one call, by name: "
                "context.prepare(g=(build_g, optimizer_of_g), d=(build_d, optimizer_of_d))"
            )
        if (model is None) == (not named):
            raise UserError(
                f"{self._name}: context.prepare takes (build_model, build_optimizer), or models by name: "
                "g=(build_g, optimizer_of_g)"
            )
        task = self._several(named) if named else self._single(model, optimizer)
        self._prepared = True
        hooks.reach("build")
        models, optimizers = self.backend.build(task, self._trainer.train)
        self._models = models
        self._trainer.begin()
        if not named:
            return models, optimizers
        return {name: (models[name], optimizers.get(name)) for name in models}

    def _single(self, model: Any, optimizer: Any) -> Any:
        for given, what in ((model, "build_model"), (optimizer, "build_optimizer")):
            self._check_builder(given, what)
        return SimpleNamespace(name=self._name, model=model, optimizer=optimizer)

    def _several(self, named: dict[str, Any]) -> Any:
        pairs = {name: given if isinstance(given, tuple) else (given, None) for name, given in named.items()}
        for name, pair in pairs.items():
            if len(pair) != 2:
                raise UserError(f"{self._name}: context.prepare({name}=…) takes (build_model, build_optimizer)")
            self._check_builder(pair[0], name)
            if pair[1] is not None:
                self._check_builder(pair[1], f"{name}'s optimizer")

        def optimizers(models: dict[str, Any]) -> dict[str, Any]:
            return {name: make(models[name]) for name, (_, make) in pairs.items() if make is not None}

        return SimpleNamespace(
            name=self._name, models=lambda: {name: build() for name, (build, _) in pairs.items()}, optimizers=optimizers
        )

    def _check_builder(self, given: Any, what: str) -> None:
        # Models can be called too.
        if not callable(given) or (
            not isinstance(given, type) and (hasattr(given, "parameters") or hasattr(given, "trainable_variables"))
        ):
            raise UserError(
                f"{self._name}: context.prepare was given {task_answers.gave(given)} as {what}; expected a function that "
                "builds it, since every worker must begin with the same weights"
            )

    def register(self, name: str, thing: Any) -> Any:
        """Keep the state of any object with `state_dict` and `load_state_dict` (an average of weights, a scheduler, a
        counter) in the checkpoint under this name, and give it the state it had if the run goes on from one. It must be
        the same on every rank. Gives the object back."""
        if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
            raise UserError(
                f"{self._name}: context.register({name!r}, …) was given {task_answers.gave(thing)}; expected an object with "
                "state_dict() and load_state_dict(state)"
            )
        if not name.isidentifier():
            raise UserError(f"{self._name}: context.register({name!r}, …): the name must be an identifier, like 'ema'")
        self.backend.register(name, thing)
        return thing

    def batches(self, data: Any, collate: Collate | None = None) -> Iterator[Any]:
        """Yield this worker's part of each remaining global batch, in the order that the run's seed gives."""
        trainer = self._trainer
        source = opened(data, seed=trainer.train.seed, name=f"{self._name}: context.batches", collate=collate)
        sampler = Sampler(source.size, trainer.train)
        beginning = trainer.register(source)
        if self._report is None:
            trainer.keep_beginning(beginning)
        self._begin(sampler.total_steps, source.size)
        self._sampler = sampler
        trainer.warn_about(source)
        first_shard, count = trainer.shards.start, sum(sampler.sizes(trainer.shards))

        def fetch(step: int) -> Any:
            begin = sampler.begin(step, first_shard)
            return source.fetch(sampler.indices(begin, count), begin)

        numbers = range(self._done, sampler.total_steps)
        with closing(trainer.training_batches(source, fetch, numbers, sampler)) as fetched:
            for step, begin, indices in trainer.upcoming(sampler, self._done):
                batch = fetched.get(step)
                seed = step_seed(trainer.train.seed, step, first_shard)
                seed_host(seed)
                self.backend.seed_optimizers(step_seed(trainer.train.seed, step, OPTIMIZERS))
                self._under_way = True
                self._content = source.content if isinstance(source, Stream) else None
                yield self.backend.feed(batch, seed)
                self._under_way = False
                self._complete(begin, indices)
                if self._reason and self._done < sampler.total_steps:
                    trainer.channel.ask_to_stop(self._reason)
        self._left = self._done < sampler.total_steps

    def shards(self, batch: Any) -> Iterator[Any]:
        """The parts of this worker's batch to compute one after the other, each with its own forward and backward pass::

            for batch in context.batches(data):
                optimizer.zero_grad()
                for part in context.shards(batch):
                    loss = loss_of(model, part)
                    loss.backward()
                optimizer.step()

        With `train.exact` they are the shards, whose gradients are summed in one fixed tree: `.grad` is then the mean over the global
        batch, the same to the last bit on every number of workers. Without it, there is one part: the batch."""
        trainer = self._trainer
        if not trainer.train.exact:
            yield batch
            return
        try:
            yield from self.backend.shard_passes(
                batch, [step_seed(trainer.train.seed, self._done, shard) for shard in trainer.shards]
            )
        except ValueError as error:
            raise UserError(f"{self._name}: context.shards: {error}") from None
        self._summed = True

    def _keep_exact(self) -> None:
        """Refuse a step whose gradients were not summed in the tree, and keep their checksums."""
        if not self._summed:
            raise UserError(
                f"{self._name}: train.exact: step {self._done} was done without context.shards, whose parts are to be computed one "
                "after the other: for part in context.shards(batch)"
            )
        self._summed = False
        if self._gradients:
            self._gradients.add(self._done, self._trainer.shards, self.backend.gradient_checksums())

    def report(self, **values: Any) -> None:
        """Named numbers of the step under way (loss, accuracy); their mean over ranks is shown every `log_every` steps.

        Without `batches`, each call ends a step of a loop with data of its own: begin it at `context.step`, and go on to
        `context.total_steps`. Checkpoints are then made here, and here the run leaves if it is asked to stop, or has had all its steps."""
        for name, value in task_answers.named_numbers(values, f"{self._name}: context.report").items():
            # A value on a device is not waited for before it is shown.
            self._values[name] = value.detach() if hasattr(value, "detach") else value
        self._check_loss()
        if self._sampler is None:
            self._count_own()

    def _check_loss(self) -> None:
        """A loss on the host costs nothing to look at; one on a device is looked at when it is shown."""
        loss = self._values.get("loss", 0.0)
        if (
            self._trainer.train.on_nonfinite != "ignore"
            and str(getattr(loss, "device", "cpu")) == "cpu"
            and not math.isfinite(loss)
        ):
            raise UserError(
                f"the loss is {float(loss)} at step {self._done} on rank {self.rank}: lower the learning rate, clip the "
                "gradient, or look for bad samples (train.on_nonfinite: ignore trains on)"
            )

    def _count_own(self) -> None:
        channel = self._trainer.channel
        if self._report is None:
            channel.may_begin(self._done)
            self._begin(self.total_steps, None)
        if self._done >= self.total_steps:
            self._end_loop()
        self._complete(0, np.empty(0, np.int64))
        if self._reason:
            channel.ask_to_stop(self._reason)
        self._clock.done(self._done)
        self._trainer.debugger.before(self._done, self.backend)
        if not channel.may_begin(self._done):
            self._left = True
            self._trainer.leave(self._done)
            raise Leaving
        hooks.reach("step", self._done)

    def _end_loop(self) -> None:
        """Collective. Leave a loop that goes on after the last step of the run, whose state is saved."""
        if self.rank == 0:
            self._trainer.warn(
                f"{self._name} went on after its last step, {self._done}, and was ended there: let its loop go to context.total_steps, or set "
                "train.steps"
            )
        self._trainer.finish_saving(self._done)
        raise Leaving

    def evaluate(
        self,
        metrics: Callable[[Any, Any], Any],
        data: Any,
        collate: Collate | None = None,
        *,
        metrics_of: Callable[..., Any] | None = None,
    ) -> dict[str, float]:
        """Collective. The mean of `metrics(model, batch)` over all samples of `data`, on all ranks and shown as held-out
        numbers; `train.evaluate_steps` limits it. With `metrics_of`, the first function returns arrays with the samples along their
        first axis, and the numbers are those that `metrics_of(*arrays)` returns on rank 0, once, of all samples in their order."""
        trainer = self._trainer
        source = opened(data, seed=trainer.train.seed, name=f"{self._name}: context.evaluate", collate=collate)
        size = max(1, trainer.train.global_batch // (trainer.train.shards or 1))
        began = time.perf_counter()
        hooks.reach("evaluation", self._done)
        batches = trainer.held_out(source, size)
        name = f"{self._name}: metrics_of"
        values = (
            whole_set.metrics(self.backend, batches, metrics, metrics_of, name)
            if metrics_of
            else self.backend.evaluate(batches, metrics)
        )
        if self.rank == 0:
            seconds = round(time.perf_counter() - began, 4)
            trainer.channel.report(Evaluation(step=self._done + self._under_way, values=values, seconds=seconds))
        return values

    def stop(self, reason: str) -> None:
        """End the run after the step under way, with its state saved and exit code 0; the summary says why. If not every
        rank asks for it at the same step, all go on to the first step that each of them can still reach."""
        self._reason = reason or "the function asked for it"

    def _begin(self, total_steps: int, samples: int | None) -> None:
        """The first step of this attempt is about to begin, or was begun by a loop without `batches`."""
        if self._report is not None:
            return
        unreported = Unreported(self._trainer)
        TaskAttributes(self._owners, self._name, self._models, self._trainer)
        if self._trainer.checkpoint and (missing := self.backend.unclaimed()):
            raise UserError(
                f"the checkpoint {self._trainer.checkpoint.name} holds the state of {', '.join(map(repr, missing))}, which "
                f"{self._name} did not context.register before its first step"
            )
        self._trainer.restore_last()
        self._trainer.announce(total_steps, samples)
        self._trainer.channel.listen()
        self._report = Report(self._trainer, total_steps, unreported, counts_samples=samples is not None)
        self._clock = self._trainer.step_clock()
        self._ledger = self._trainer.open_ledger()
        self._gradients = self._trainer.open_gradient_ledger()

    def _complete(self, begin: int, indices: Any) -> None:
        """Collective. The step under way is done."""
        assert self._ledger is not None and self._report is not None, "a step was begun"
        self._ledger.add(self._done, begin, indices, content=self._content)
        if self._trainer.train.exact:
            self._keep_exact()
        self._done += 1
        self._report.count(self._done, self._values)
        self._values = {}
        self._trainer.after_step(self._done, self.total_steps)
        self.backend.completed()
        if self._done == self._trainer.train.until and not self._reason:
            self.stop(f"train.until is {self._done}")

    def finish(self) -> None:
        """Collective. The function returned: save the state of its last step, and say why if steps were left undone."""
        trainer = self._trainer
        if self._under_way:
            sampler = self._sampler
            assert sampler is not None, "its batches were begun"
            begin = sampler.begin(self._done, trainer.shards.start)
            self._complete(begin, sampler.indices(begin, sum(sampler.sizes(trainer.shards))))
        trainer.finish_saving(self._done)
        if self._report is None or self._left or self._done >= self.total_steps or self._done == trainer.first_step:
            return
        trainer.channel.report(LoopLeft(self._done))
        trainer.channel.ask_to_stop(self._reason or "the function left its loop")
        # Without `batches`, the step that would have been next counts as begun since the last report.
        if self._sampler is not None and trainer.channel.may_begin(self._done):
            raise UserError(
                f"{self._name} left its loop after {self._done} steps on rank {self.rank} while another rank went on: leave "
                "at the same step on every rank, or call context.stop(reason), which agrees on one"
            )
        trainer.leave(self._done)
