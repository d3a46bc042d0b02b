"""What the PyTorch strategies share: connecting, one training step, evaluation, and state that moves between them.

Importing this module imports no framework; every function that needs torch imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from dtrain.api.strategy import FIRST_STEP, Fetch, RankInfo, RendezvousInfo, StepNumber, WorkerContext, nothing_to_fetch
from dtrain.api.weights import ReadWeights, Unmatched
from dtrain.common.errors import UserError
from dtrain.data.randomness import seed_host
from dtrain.spec.contract import gave, loss_and_metrics, named_numbers
from dtrain.spec.failures import FailureKind
from dtrain.spec.job import Device, Job, Resources, Train

from .. import environments, errors
from . import initial, network
from .batches import Mover, evaluating
from .buffers import BufferSync
from .losses import LateLosses
from .measures import StepMeasures
from .models import made
from .optimizers import check_trained, sorted_out
from .own_step import OwnStep
from .parallel import Parallel
from .profiler import TorchProfiler
from .snapshot import Snapshots, TorchSnapshot
from .state import ONLY, Stored, TorchState

PRELOAD = (
    "torch", "torch.distributed", "torch._dynamo", "torch.nn.parallel", "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "dtrain.worker.loop",
)  # fmt: skip
CONNECT_SECONDS = 300
LEAST_TIMEOUT_SECONDS = 1800.0
"""Of the process group's collectives."""
HANGS = 3.0
"""Times `recovery.hang_seconds`: later than dtrain's own look at the ranks."""
Metrics = Callable[[Any, Any], Any]


@contextmanager
def connected(context: WorkerContext) -> Iterator[Any]:
    """Collective. The default process group over the reserved port; yields this worker's device."""
    import torch
    import torch.distributed as dist

    rank_info, rendezvous, listener = context.rank_info, context.rendezvous, context.listener
    on_gpu = context.job.resources.device == "gpu"
    device = torch.device("cuda", rank_info.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if listener is not None:
        listener.listen(1024)
    store = dist.TCPStore(
        rendezvous.addresses[0],
        rendezvous.ports[0],
        rank_info.world_size,
        is_master=listener is not None,
        timeout=timedelta(seconds=CONNECT_SECONDS),
        wait_for_workers=False,
        # The store closes what it is given when it ends: let it have a copy.
        master_listen_fd=listener.dup().detach() if listener is not None else None,
    )
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank_info.rank, world_size=rank_info.world_size,
        # A hang is for dtrain to find: its report names the rank and has the stacks.
        timeout=timedelta(seconds=max(LEAST_TIMEOUT_SECONDS, HANGS * context.job.recovery.hang_seconds)),
    )  # fmt: skip
    yield device
    # Only if all went well: after an error the peers may be gone, and this process is about to end anyway.
    dist.destroy_process_group()


class OneADevice:
    """What the launcher's side of DDP and FSDP has in common: one process a device, told its place as torchrun tells it."""

    framework = "torch"
    measure_network = staticmethod(network.measure)

    def preload(self, job: Job) -> tuple[str, ...]:
        """torch and what a first step would import."""
        return PRELOAD

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """One a device."""
        return workers_per_node

    def classify(self, type_names: Sequence[str], message: str) -> FailureKind | None:
        """See `ClassifiesErrors.classify`."""
        return errors.of_torch(type_names, message)

    def splits_unevenly(self, job: Job) -> bool:
        """Losses are weighted, and every worker takes as many passes."""
        return True

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """As torchrun sets it."""
        return environments.torchrun(rank_info, rendezvous)

    def problems(self, resources: Resources) -> list[str]:
        """What does not fit the device."""
        if resources.device == "tpu":
            return [
                "PyTorch strategies train on CPUs and GPUs: set resources.device to cpu or gpu, or choose the strategy tpu"
            ]
        return []


class TorchBackend:
    """Training with a process group; `parallel` is what the strategy adds."""

    forks_safely = True

    def __init__(self, rank_info: RankInfo, device: Any, parallel: Parallel) -> None:
        import torch.distributed as dist

        self._rank_info = rank_info
        self._device = device
        self._moved = Mover(device)
        self._parallel = parallel
        # Checkpoints are written beside the training: their collectives must not mix with the training's.
        self._saving = dist.new_group(backend="gloo")
        self._snapshots = Snapshots(rank_info, self._saving, device)
        self.fetch: Fetch = nothing_to_fetch
        self._warm = not parallel.rearranges
        self._state = TorchState({})
        self._stored: Stored | None = None
        self._weights: Sequence[float] = (1.0,)
        self._buffer_sync = BufferSync()

    def weigh(self, weights: Sequence[float]) -> None:
        """See `WeighsShards.weigh`."""
        self._weights = weights

    def build(self, task: Any, train: Train) -> tuple[Any, Any]:
        """See `TrainingBackend.build`."""
        import torch

        torch.manual_seed(train.seed)
        self._task = task
        self._name = getattr(task, "name", type(task).__name__)
        self._own_step = hasattr(task, "train_step")
        self._train = train
        several = hasattr(task, "models")
        self._models = {
            name: self._parallel.wrap(model.to(self._device), self._device)
            for name, model in made(task, self._name, several=several).items()
        }
        self._state.models = plain = {name: self._parallel.plain(model) for name, model in self._models.items()}
        method = f"{self._name}.{'optimizers' if hasattr(task, 'optimizers') else 'optimizer'}"
        given = (task.optimizers if hasattr(task, "optimizers") else task.optimizer)(plain if several else plain[ONLY])
        optimizers, self._state.schedulers = sorted_out(given, method)
        if self._state.schedulers and hasattr(task, "schedule"):
            raise UserError(f"{method} gave a scheduler, and there is {self._name}.schedule too: leave out one of them")
        named = list(self._state.named_parameters())
        check_trained(optimizers, named, method)
        passes = 1 if self._own_step or not hasattr(task, "loss") else (train.shards or 1) // self._rank_info.world_size
        self._optimizers = self._state.optimizers = {
            name: self._parallel.optimizer(optimizer, named, passes) for name, optimizer in optimizers.items()
        }
        self._rates = [group["lr"] for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        self._late = LateLosses(active=train.terminate_on_nan)
        self._measures = StepMeasures(train.log_every)
        return self._view(self._models), self._view(self._optimizers)

    def _view(self, things: dict[str, Any]) -> Any:
        """As the user gave them: one, or several by name."""
        return things.get(ONLY, things)

    def feed(self, batch: Any, seed: int) -> Any:
        """See `TrainingBackend.feed`."""
        self._snapshots.wait()  # the user's own loop steps whenever it likes
        self.seed(seed)
        return self._moved(batch)

    def seed(self, seed: int) -> None:
        """Seed the generators that layers draw from."""
        import torch

        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def step(self, batches: Sequence[Any], seeds: Sequence[int], rate: float, number: StepNumber = FIRST_STEP) -> Any:
        """See `TrainingBackend.step`. The gradients of all shards but the last stay on this worker."""
        self._set_rates(rate)
        self._measures.begin(number, self._optimizers)
        by_task = self._own_step
        values = self._step_by_task(batches[0], seeds[0], number) if by_task else self._step_by_loss(batches, seeds)
        for scheduler in self._state.schedulers.values():
            scheduler.step()
        self._buffer_sync.share(self._buffers())
        return values

    def _step_by_loss(self, batches: Sequence[Any], seeds: Sequence[int]) -> Any:
        if not self._warm:
            self._warm_up(batches[0], seeds[0])
            seed_host(seeds[0])
        self._to_training()
        total, metrics = None, dict[str, Any]()
        for number, (batch, seed) in enumerate(zip(batches, seeds, strict=True), start=1):
            self.seed(seed)
            with self._passing(last=number == len(batches)):
                loss, more = self._loss(batch)
                weight = self._weights[number - 1]
                loss = loss if weight == 1.0 else loss * weight
                self._late.add(loss, number - 1)
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
            for name, value in more.items():
                value = value.detach() if hasattr(value, "detach") else value
                metrics[name] = metrics.get(name, 0.0) + value * weight
        parameters = (parameter for _, parameter in self._state.named_parameters())
        self._snapshots.wait()
        self._parallel.apply(list(self._optimizers.values()), parameters, self._train.clip_norm, self._measures)
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()
        self._late.next_step()
        return {"loss": total} | metrics if metrics else total

    def _step_by_task(self, batch: Any, seed: int, number: StepNumber) -> Any:
        self._snapshots.wait()
        self.seed(seed)
        self._to_training()
        own = OwnStep(
            number.step, number.total_steps, self._moved(batch), self._models, self._optimizers,
            self._parallel, self._train.clip_norm, self._measures, self._weights[0],
        )  # fmt: skip
        with self._parallel.autocast(self._device):
            given = self._task.train_step(own)
        name = f"{self._name}.train_step"
        if isinstance(given, Mapping):
            numbers = named_numbers(given, name)
            values = {key: value.detach() if hasattr(value, "detach") else value for key, value in numbers.items()}
        else:
            values = {"loss": loss_and_metrics(given, name)[0].detach()}
        if hasattr(values.get("loss"), "device"):
            self._late.add(values["loss"], 0)
        self._late.next_step()
        return values

    def _loss(self, batch: Any) -> tuple[Any, dict[str, Any]]:
        name = f"{self._name}.loss"
        with self._parallel.autocast(self._device):
            loss, metrics = loss_and_metrics(self._task.loss(self._view(self._models), self._moved(batch)), name)
        if not loss.requires_grad:
            raise UserError(
                f"{name} gave {gave(loss)} without a gradient; expected a loss that follows from the model's parameters: "
                "is it detached, made under no_grad, or is all of the model frozen?"
            )
        return loss.reshape(()), metrics

    def _set_rates(self, rate: float) -> None:
        """The base learning rates times the schedule's factor; a scheduler of the user's own sets them otherwise."""
        if self._state.schedulers:
            return
        groups = (group for optimizer in self._optimizers.values() for group in optimizer.param_groups)
        for group, base in zip(groups, self._rates, strict=True):
            group["lr"] = base * rate

    def _to_training(self) -> None:
        """Models that are trained are in training mode; one without an optimizer (a teacher) stays as the user left it."""
        for model in self._models.values():
            if not model.training and any(parameter.requires_grad for parameter in model.parameters()):
                model.train()

    @contextmanager
    def _passing(self, *, last: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for model in self._models.values():
                stack.enter_context(self._parallel.gradient_sync(model, last=last))
            yield

    def _buffers(self) -> list[Any]:
        return [buffer for model in self._models.values() for buffer in model.buffers()]

    def _warm_up(self, batch: Any, seed: int) -> None:
        """One pass whose gradients are thrown away. DDP rearranges its buckets after the first one, and with them the
        order of summation: from here on a resumed run sums in the same order as an undisturbed one."""
        import torch

        self._warm = True
        buffers = [(buffer, buffer.detach().clone()) for buffer in self._buffers()]
        self._to_training()
        self.seed(seed)
        with self._passing(last=True):
            loss, _ = self._loss(batch)
        loss.backward()
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    def evaluate(self, batches: Iterable[tuple[Any, int]], metrics: Metrics | None = None) -> dict[str, float]:
        """See `TrainingBackend.evaluate`."""
        import torch

        sums: dict[str, Any] = {}
        weight = 0
        with evaluating(self._models.values()), torch.no_grad(), self._parallel.autocast(self._device):
            for batch, count in batches:
                for name, value in self._measured(self._moved(batch), metrics).items():
                    sums[name] = sums.get(name, 0.0) + torch.as_tensor(value, dtype=torch.float64) * count
                weight += count
        return self.mean({name: float(total) / max(1, weight) for name, total in sums.items()}, weight)

    def _measured(self, batch: Any, metrics: Metrics | None) -> Mapping[str, Any]:
        models = self._view(self._models)
        if metrics is not None:
            return named_numbers(metrics(models, batch), f"{self._name}: the metrics of context.evaluate")
        if hasattr(self._task, "metrics"):
            return named_numbers(self._task.metrics(models, batch), f"{self._name}.metrics")
        if not hasattr(self._task, "loss"):
            raise UserError(f"{self._name} has held-out data and neither metrics nor loss to evaluate it with")
        loss, more = loss_and_metrics(self._task.loss(models, batch), f"{self._name}.loss")
        return {"loss": loss.reshape(())} | more

    def mean(self, values: Mapping[str, float], weight: float = 1.0) -> dict[str, float]:
        """See `TrainingBackend.mean`."""
        import torch
        import torch.distributed as dist

        self._late.check()
        numbers = [value * weight for value in values.values()]
        summed = torch.tensor([*numbers, weight], dtype=torch.float64, device=self._device)
        dist.all_reduce(summed)
        *totals, weights = summed.tolist()
        return {name: total / weights if weights else 0.0 for name, total in zip(values, totals, strict=True)}

    def measured(self) -> dict[str, float]:
        """See `MeasuresSteps.measured`."""
        return self._measures.values(self._optimizers)

    def snapshot(self) -> TorchSnapshot:
        """See `TrainingBackend.snapshot`."""
        self._late.check()
        self._buffer_sync.share(self._buffers())
        state = self._state.gathered()
        section = "model" if "model" in state else "models"
        parameters = {f"{section}.{name}" for name, _ in self._state.named_parameters()}
        return self._snapshots.take(state, parameters)

    def start_profile(self, file: Path) -> TorchProfiler:
        """See `ProfilesSteps.start_profile`."""
        return TorchProfiler(self._device)

    def load(self, folder: Path) -> None:
        """See `TrainingBackend.load`."""
        self._stored = self._state.load(folder, self._saving, self.fetch)

    def start_from(self, read: ReadWeights, source: str, *, strict: bool) -> Unmatched:
        """See `StartsFromWeights.start_from`."""
        return initial.start_from(self._state, self._saving, self._rank_info.rank, read, source, strict=strict)

    def register(self, name: str, thing: Any) -> None:
        """See `TrainingBackend.register`."""
        if self._state.registered.get(name, thing) is not thing:
            raise UserError(f"two things are registered as {name!r}")
        self._state.registered[name] = thing
        if self._stored:
            self._stored.give("registered", name, thing)

    def unclaimed(self) -> list[str]:
        """See `TrainingBackend.unclaimed`."""
        there = self._stored.names("registered") if self._stored else []
        return [name for name in there if name not in self._state.registered]

    def whole(self) -> Any:
        """See `TrainingBackend.whole`. A sharded model is built once more, on the host."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        if not self._parallel.shards:
            return None if self._rank_info.rank else self._view(self._state.models)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        states = {name: get_model_state_dict(model, options=options) for name, model in self._state.models.items()}
        if self._rank_info.rank:
            return None
        models = made(self._task, self._name, several=ONLY not in states)
        for name, model in models.items():
            model.load_state_dict(states[name])
        return self._view(models)
