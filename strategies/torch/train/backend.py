"""The shared part of the PyTorch strategies: step, evaluation, state. Importing this module imports no framework: functions do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dtrain.api.operations import Operation
from dtrain.api.step_checks import Judge
from dtrain.api.strategy import RankInfo
from dtrain.api.training_backend import FIRST_STEP, Fetch, LossApart, StepNumber, TrainingBackend, nothing_to_fetch
from dtrain.api.weights import ReadWeights, Unmatched
from dtrain.common import hooks, plain_values
from dtrain.common.errors import UserError
from dtrain.data.randomness import seed_host
from dtrain.job.job import Train
from dtrain.job.task_answers import LossAnswer, gave, loss_answer

from ... import means
from ..exact import tree_sums
from ..state import initial, optimizer_state, replicas
from ..state.snapshot import Snapshots, TorchSnapshot
from ..state.state import GRADIENTS, ONLY, TRAINING_WEIGHTS, Stored, TorchState
from ..watch import network
from ..watch.measures import StepMeasures
from ..watch.operations import Operations
from ..watch.phases import StepPhases
from ..watch.profiler import TorchProfiler
from . import evaluation, step_check
from .batches import Mover, evaluating, part_of
from .buffers import BufferSync
from .deferred import gathered
from .draws import Draws
from .loss_scale import LossScale
from .losses import LateLosses
from .models import made
from .optimizers import check_trained, forget_gradients, refuse_closures, sorted_out, trained
from .own_step import OwnStep, reported
from .parallel import Parallel
from .process_group import everyones, totals
from .step_check import StepCheck

PRELOAD = (
    "torch", "torch.distributed", "torch._dynamo", "torch.nn.parallel", "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "dtrain.worker.loop",
)  # fmt: skip
Metrics = Callable[[Any, Any], Any]


class TorchBackend(TrainingBackend):
    """Training with a process group; `parallel` is what the strategy adds."""

    forks_safely = fetches = stays_in_memory = logs_operations = finds_nonfinite = True

    def __init__(self, rank_info: RankInfo, device: Any, parallel: Parallel) -> None:
        import torch.distributed as dist

        self._rank_info = rank_info
        self._device = device
        self._moved = Mover(device)
        self._parallel = parallel
        # Checkpoints are written beside the training: their collectives must not mix with the training's.
        self._saving = dist.new_group(backend="gloo")
        self._snapshots = Snapshots(rank_info, self._saving, device)
        self._exact = parallel.exact
        self._state = TorchState({})
        self._stored: Stored | None = None
        self._weights: Sequence[float] = (1.0,)
        self._stepped = True
        """Whether an optimizer stepped in the step under way, so that its gradients are used."""
        self._buffer_sync = BufferSync()
        self._draws = Draws(device)
        self._late = LateLosses()
        self._operations = Operations()
        self._check = StepCheck(rank_info, device, self._late)
        self._judge: Judge | None = None
        self._phases = parallel.phases = StepPhases(device)
        self.scales_loss = parallel.scales_loss
        parallel.scale = LossScale(device) if self.scales_loss else None

    def weigh(self, weights: Sequence[float]) -> None:
        """`train.exact` has equal shards and divides their sum at the end."""
        self._weights = weights

    def build(self, task: Any, train: Train) -> tuple[Any, Any]:
        import torch

        torch.manual_seed(train.seed)
        self._task = task
        self._name = getattr(task, "name", type(task).__name__)
        self._own_step = hasattr(task, "train_step")
        self._by_function = not (self._own_step or hasattr(task, "loss"))
        if self._exact and self._own_step:
            raise UserError(
                f"{self._name}.train_step takes its gradients itself: train.exact needs a task with `loss`, whose shards dtrain "
                "computes one by one"
            )
        self._train = train
        several = hasattr(task, "models")
        self._models = self._parallel.built(partial(made, task, self._name, several=several), self._device)
        self._state.models = plain = {name: self._parallel.plain(model) for name, model in self._models.items()}
        if self._exact:
            tree_sums.refuse(plain.values(), self._name)
        method = f"{self._name}.{'optimizers' if hasattr(task, 'optimizers') else 'optimizer'}"
        given = (task.optimizers if hasattr(task, "optimizers") else task.optimizer)(plain if several else plain[ONLY])
        optimizers, self._state.schedulers = sorted_out(given, method)
        if self._state.schedulers and hasattr(task, "schedule"):
            raise UserError(f"{method} gave a scheduler, and there is {self._name}.schedule too: leave out one of them")
        named = list(self._state.named_parameters())
        check_trained(optimizers, named, method)
        refuse_closures(
            optimizers, method, own=self._own_step or self._by_function, possible=self._parallel.takes_closures
        )
        passes = 1 if self._own_step or self._by_function else (train.shards or 1) // self._rank_info.world_size
        self._optimizers = self._state.optimizers = {
            name: self._parallel.optimizer(optimizer, named, passes) for name, optimizer in optimizers.items()
        }
        self._state.note_settings()
        self._scheduled = hasattr(task, "schedule")
        self._moded = [] if self._by_function else optimizer_state.with_modes(self._optimizers.values())
        self._draws.watch(self._optimizers.values(), self._note_step)
        self._late.active = train.on_nonfinite == "stop"
        self._measures = StepMeasures(train.log_every)
        if self._own_step or self._by_function:
            for model in self._models.values():
                self._parallel.watch_calls(model, self._device, self._phases.watch_output)
        return self._view(self._models), self._view(self._optimizers)

    def _view(self, things: dict[str, Any]) -> Any:
        """Return the models as the user gave them: one, or several by name."""
        return things.get(ONLY, things)

    def feed(self, batch: Any, seed: int) -> Any:
        self._snapshots.wait()  # the user's own loop steps whenever it likes
        self._buffer_sync.share(self._buffers())
        self.seed(seed)
        self._phases.begin()
        return self._moved(batch)

    def shard_passes(self, batch: Any, seeds: Sequence[int]) -> Iterator[Any]:
        assert self._exact is not None, "only then are there shards"
        self._late.next_step()
        for number, seed in enumerate(seeds, start=1):
            self.seed(seed)
            seed_host(seed)
            with self._passing(number, len(seeds)):
                yield part_of(batch, number - 1, len(seeds))

    def seed(self, seed: int) -> None:
        """Seed the generators that layers draw from."""
        self._draws.seed(seed)

    def seed_optimizers(self, seed: int) -> None:
        self._draws.begin(seed)

    def step(self, batches: Sequence[Any], seeds: Sequence[int], rate: float, number: StepNumber = FIRST_STEP) -> Any:
        """The gradients of all shards but the last stay on this worker."""
        self._set_rates(rate)
        self._phases.begin()
        self._measures.begin(number, self._optimizers)
        values = (self._step_by_task if self._own_step else self._step_by_loss)(batches, seeds, number)
        self._phases.end()
        self.leave_out()
        self._buffer_sync.share(self._buffers())
        return values

    def judge_by(self, judge: Judge) -> None:
        self._judge = judge
        if self._parallel.scale:
            self._parallel.scale.keep_in(self._state.registered, self._stored)

    def suspend_timeouts(self) -> None:
        network.suspend_timeouts()

    def operations_told(self, tell: Callable[[Operation], None]) -> AbstractContextManager[None]:
        return self._operations.told(tell)

    def leave_out(self) -> None:
        for scheduler in self._state.schedulers.values():
            scheduler.step()

    def origin(self, batch: Any, seed: int, *, gradient: bool) -> str | None:
        """A sharded model's passes wait for the other ranks."""
        if self._parallel.waits_inside or self._own_step:
            return None
        self.seed(seed)
        models = self._state.models
        with self._parallel.autocast(self._device):
            return step_check.origin(
                models, self._moved(batch), lambda moved: loss_answer(self._task.loss(self._view(models), moved), self._name).loss,
                gradient=gradient,
            )  # fmt: skip

    def _step_by_loss(self, batches: Sequence[Any], seeds: Sequence[int], number: StepNumber) -> Any:
        self._to_training()
        metrics = dict[str, tuple[Any, float]]()
        objective = self._parallel.objective(f"{self._name}.loss", self._rank_info, len(batches))
        self._check.begin(self._judge, self._buffers())
        for shard, (batch, seed) in enumerate(zip(batches, seeds, strict=True), start=1):
            self.seed(seed)
            if self._exact:
                seed_host(seed)
            share = self._weights[shard - 1]
            with self._passing(shard, len(batches)):
                loss, more, weight = self._loss(batch)
                self._check.add(loss, shard - 1)
                self._parallel.backward(objective.add(loss, weight, share))
            for name, value in more.items():
                value = value.detach() if hasattr(value, "detach") else value
                total, weight = metrics.get(name, (0.0, 0.0))
                metrics[name] = total + value * share, weight + share
        self._snapshots.wait()
        hooks.reach("reduced", number.step)
        optimizers, clip_norm = list(self._optimizers.values()), self._train.clip_norm
        total, factor = objective.reduced()
        parameters = trained(self._optimizers)
        if not self._parallel.apply(optimizers, parameters, clip_norm, self._measures, self._check, factor=factor):
            self._check.undo()
        forget_gradients(optimizers, parameters, (parameter for _, parameter in self._state.named_parameters()))
        self._late.next_step()
        return {"loss": total} | metrics if metrics else total

    def gradient_checksums(self) -> list[int]:
        return self._exact.checksums() if self._exact else []

    def fingerprints(self) -> list[str]:
        return everyones(tree_sums.fingerprint(self._device), self._saving)

    def phases(self) -> Mapping[str, float]:
        return self._phases.take()

    def _step_by_task(self, batches: Sequence[Any], seeds: Sequence[int], number: StepNumber) -> Any:
        self._snapshots.wait()
        self.seed(seeds[0])
        self._to_training()
        own = OwnStep(
            number.step, number.total_steps, self._moved(batches[0]), self._models, self._optimizers,
            self._parallel, self._train.clip_norm, self._measures, self._check, self._rank_info, self._weights[0],
        )  # fmt: skip
        with self._parallel.autocast(self._device):
            given = self._task.train_step(own)
        values = reported(given, f"{self._name}.train_step")
        if hasattr(values.get("loss"), "device"):
            self._late.add(values["loss"], 0)
        self._late.next_step()
        return values

    def _loss(self, batch: Any) -> LossAnswer:
        name = f"{self._name}.loss"
        with self._parallel.autocast(self._device):
            answer = loss_answer(self._task.loss(self._view(self._models), self._moved(batch)), name)
        loss = answer.loss
        if not loss.requires_grad:
            raise UserError(
                f"{name} gave {gave(loss)} without a gradient; expected a loss that follows from the model's parameters: "
                "is it detached, made under no_grad, or is all of the model frozen?"
            )
        self._phases.watch(loss)
        return answer._replace(loss=loss.reshape(()))

    def _set_rates(self, rate: float) -> None:
        """Set the rates that groups were made with times the factor of the task's `schedule`, if it has one."""
        if not self._scheduled:
            return
        self._state.note_settings()
        for name, optimizer in self._optimizers.items():
            for group, settings in zip(optimizer.param_groups, self._state.settings[name], strict=True):
                group["lr"] = plain_values.decoded(settings["lr"]) * rate

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    def completed(self) -> None:
        self._stepped = False

    def _to_training(self) -> None:
        """Models that are trained are in training mode; one without an optimizer (a teacher) stays as the user left it."""
        for optimizer in self._moded:
            optimizer.train()
        for model in self._models.values():
            if not model.training and any(parameter.requires_grad for parameter in model.parameters()):
                model.train()

    @contextmanager
    def _passing(self, number: int, count: int) -> Iterator[None]:
        """Around the forward and backward pass of this number (from 1) of so many in a step."""
        first, last = number == 1, number == count
        with ExitStack() as stack:
            stack.enter_context(self._operations.passing(number - 1))
            if self._exact:
                self._exact.begin_pass(first=first, last=last)
            for model in self._models.values():
                stack.enter_context(self._parallel.gradient_sync(model, last=last))
            yield
        if self._exact:
            model = next(iter(self._models.values()))
            self._exact.end_pass(
                (one for _, one in self._state.named_parameters()), reduced=self._parallel.reduced(model)
            )
            self._exact.keep_buffers(self._buffers, first=first, last=last)

    def _buffers(self) -> list[Any]:
        return [buffer for model in self._models.values() for buffer in model.buffers()]

    def evaluate(self, batches: Iterable[tuple[Any, int]], metrics: Metrics | None = None) -> dict[str, float]:
        models = self._view(self._models)
        with self._evaluating():
            measure = evaluation.measure_of(self._task, self._name, metrics)
            return self.mean(*evaluation.sums(batches, lambda batch: measure(models, self._moved(batch))))

    def outputs(self, batches: Iterable[tuple[Any, int]], function: Metrics) -> tuple[Any, ...] | None:
        models = self._view(self._models)
        with self._evaluating():
            return evaluation.outputs(
                batches, lambda batch: function(models, self._moved(batch)), self._rank_info, f"{self._name}.outputs"
            )

    def loss_apart(self, batch: Any, seed: int) -> LossApart:
        if self._parallel.shards or self._own_step:
            return None
        self.seed(seed)
        return evaluation.loss_apart(self._task, self._state.models, self._view, self._moved(batch), self._name)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        import torch

        with (
            optimizer_state.evaluating(self._moded, self._state.named_parameters()),
            evaluating(self._models.values()),
            torch.no_grad(),
            self._parallel.autocast(self._device),
        ):
            yield

    def mean(self, values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, float]:
        self._late.check()
        return means.by_name(values, weights, self._rank_info.world_size, partial(totals, self._device), everyones)

    def measured(self) -> dict[str, float]:
        return self._measures.values(self._optimizers)

    def check_replicas(self) -> None:
        named = [] if self._parallel.shards else list(self._state.named_parameters())
        replicas.check(named, self._rank_info.world_size, self._saving, self._name)

    def remark(self) -> str:
        return self._snapshots.remark()

    def snapshot(self) -> TorchSnapshot:
        self._late.check()
        self._buffer_sync.share(self._buffers())
        state = self._state.gathered()
        section = "model" if "model" in state else "models"
        named = list(self._state.named_parameters())
        if self._by_function:
            own = {id(one) for one in trained(self._optimizers)}
            averaged = [pair for pair in named if self._parallel.averages_all or id(pair[1]) in own]
            used = own if self._stepped else set()
            gradients = optimizer_state.pending_gradients(averaged, used, self._rank_info.world_size)
            state |= {GRADIENTS: gradients} if gradients else {}
        with optimizer_state.evaluating(self._optimizers.values(), named) as weights:
            state |= {TRAINING_WEIGHTS: weights} if weights else {}
            snapshot = self._snapshots.take(state, {f"{section}.{name}" for name, _ in named})
            if weights:
                self._snapshots.wait()
        return snapshot

    def start_profile(self, file: Path) -> TorchProfiler:
        return TorchProfiler(self._device)

    def load(self, folder: Path, fetch: Fetch = nothing_to_fetch) -> None:
        self._stored = self._state.load(folder, self._saving, fetch)

    def start_from(self, read: ReadWeights, source: str, *, strict: bool) -> Unmatched:
        return initial.start_from(self._state, self._saving, self._rank_info.rank, read, source, strict=strict)

    def register(self, name: str, thing: Any) -> None:
        if self._state.registered.get(name, thing) is not thing:
            raise UserError(f"two things are registered as {name!r}")
        self._state.registered[name] = thing
        if self._stored:
            self._stored.give("registered", name, thing)

    def restore_last(self) -> list[str]:
        return self._state.restore_groups(self._stored) if self._stored else []

    def unclaimed(self) -> list[str]:
        there = self._stored.names("registered") if self._stored else []
        return [name for name in there if name not in self._state.registered]

    def whole(self) -> Any:
        """A sharded model is built once more, on the host."""
        models = self._state.models
        if self._parallel.shards:
            models = gathered(models, self._task, self._name, self._rank_info.rank)
        return None if self._rank_info.rank else self._view(models)
