"""The two sides of a strategy: what the launcher asks of it, and the training backend that a worker trains through.

A module that holds a strategy imports its framework inside functions only, so that a login node needs none.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from dtrain.checkpoint.store import Files
from dtrain.job.failure_kinds import FailureKind, exception_kind
from dtrain.job.job import Device, Job, Resources, Train

ERROR_FILE = "<error file of this rank>"
"""A value in `Strategy.environment` that stands for the path of the rank's own file, in which its program may leave
an error."""


@dataclass(frozen=True)
class RankInfo:
    """Where one worker process stands among all of an attempt."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    nodes: int
    replicas: int
    """Devices this process drives; more than one under MirroredStrategy and TPUStrategy."""


@dataclass(frozen=True)
class RendezvousInfo:
    """How the workers of an attempt reach each other; every attempt has ports of its own."""

    addresses: tuple[str, ...]
    """Addresses in the order of ranks; only rank 0's in a worker whose strategy does not ask for all
    (`NeedsAllAddresses`)."""
    ports: tuple[int, ...]
    """A reserved port for every rank, on its own node; rank 0's is the rendezvous port."""
    run_id: str
    attempt: int
    """Counted from 1."""
    service: int = 0
    """One more port on rank 0's node, for a service of the strategy."""
    restarts: int = 0
    """How many times failed workers may be started again (`recovery.restarts`)."""

    @cached_property
    def on_loopback(self) -> bool:
        """Whether all of them are on one machine and reach each other without a network."""
        return all(address.startswith("127.") for address in set(self.addresses))


@dataclass(frozen=True)
class WorkerContext:
    """Everything that `join` needs to know of a worker."""

    rank_info: RankInfo
    rendezvous: RendezvousInfo
    job: Job
    listener: socket.socket | None
    """Rank 0's rendezvous port, bound and not yet listening, so that nobody can take it in between."""
    rolled_back: tuple[int, ...] = ()
    """Steps that the run goes on without; see `dtrain.record.history.rolled_back`."""


@dataclass(frozen=True)
class SnapshotFiles:
    """The files that one process wrote into a checkpoint folder."""

    files: Files
    """Names relative to the folder → sizes and digests; they are on the disk."""
    weights: str
    """Digest of the model state in these files, 64 hex digits, which are summed over processes modulo 2^256; "" for none."""


@dataclass(frozen=True)
class StepNumber:
    """The number of a step of the run."""

    step: int
    """Counted from 0."""
    total_steps: int
    """Of the whole run."""


FIRST_STEP = StepNumber(0, 1)


class NonFiniteLoss(ArithmeticError):
    """A training backend found a loss that is not finite: the pass of the step (this worker's shard, counted from 0) and how many
    steps before the present one."""

    def __init__(self, value: float, number: int, steps_ago: int = 0) -> None:
        super().__init__(value, number, steps_ago)
        self.value = value
        self.number = number
        self.steps_ago = steps_ago


class NonFiniteGradient(ArithmeticError):
    """A training backend found a gradient, averaged over the ranks, whose norm is not finite. If that is this step's (`steps_ago` 0), all
    ranks raise it together, before the optimizer steps."""

    def __init__(self, norm: float, steps_ago: int = 0) -> None:
        super().__init__(norm, steps_ago)
        self.norm = norm
        self.steps_ago = steps_ago


class NonFiniteWeights(ArithmeticError):
    """A snapshot found a weight that is not finite, and was not written; the text names the tensor."""


class Snapshot(Protocol):
    """A copy of the training state, safe from later steps."""

    def write(self, folder: Path) -> SnapshotFiles:
        """Write this process's part to the disk; runs beside the training. Raises `NonFiniteWeights` in at least one process if
        there are weights that are not finite."""


class TrainingBackend(Protocol):
    """The training of one worker, in one framework, together with all the others; yielded by `Strategy.join`."""

    def build(self, task: Any, train: Train) -> tuple[Any, Any]:
        """Collective. Model and optimizer from `task.model()` and `task.optimizer(model)`, wrapped, the same weights
        on every rank from `train.seed`. From a task with `models` and `optimizers`: dicts of both, by the task's names.
        Raises `UserError`, which names `task.name`, for what the task may not give."""

    def step(self, batches: Sequence[Any], seeds: Sequence[int], rate: float, number: StepNumber = FIRST_STEP) -> Any:
        """Collective. One optimizer step on this process's shards, `rate` times the base learning rate.

        `batches` and `seeds` have one entry a shard, in shard order. Returns the mean loss of these shards, or a dict
        of it ("loss") and other numbers, as scalars that `float` reads (which may wait for the device). A task with
        `train_step` gets the whole part of this process as one batch, and the backward pass is its own. Raises
        `NonFiniteLoss` or `NonFiniteGradient` as soon as that costs no wait, if `train.on_nonfinite` is `stop`."""

    def feed(self, batch: Any, seed: int) -> Any:
        """Seed the framework's randomness and give the batch as its tensors on this worker's device, for a loop of the
        user's own."""

    def evaluate(
        self, batches: Iterable[tuple[Any, int]], metrics: Callable[[Any, Any], Any] | None = None
    ) -> dict[str, float]:
        """Collective. Mean of `metrics(model, batch)`, the task's own if not given, over all samples of all ranks; every
        rank gives as many batches, each with the number of samples that count (0: a filler). Changes no state."""

    def mean(self, values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, float]:
        """Collective. Mean of named values over the ranks that have the name, with the weight of each (1 if none are given). The
        result is the same on every rank."""

    def check_replicas(self) -> None:
        """Collective. Raise `UserError` on every rank if state that all ranks should have alike differs."""

    def snapshot(self) -> Snapshot:
        """Collective. Copy of model and optimizer state; training may go on when it returns."""

    def load(self, folder: Path) -> None:
        """Collective. State from a checkpoint folder, whatever strategy of this framework and number of workers wrote it.
        Raises `CheckpointError` that names what does not fit."""

    def register(self, name: str, thing: Any) -> None:
        """Collective. Keep `thing.state_dict()` in checkpoints under this name; if a checkpoint was loaded, give it the
        state it had."""

    def restore_last(self) -> None:
        """Before the first step, once everything with a state exists: restore what constructors of the user's may have changed since
        `load`."""

    def unclaimed(self) -> list[str]:
        """Names in the loaded checkpoint that nothing was registered under."""

    def whole(self) -> Any:
        """Collective. The trained model (name → model if there are several) as the user made it, with all its weights, on
        rank 0; None on the others."""


class Strategy(Protocol):
    """The launcher's side: everything here is pure, and importing it imports no framework."""

    Options: ClassVar[type]
    """Frozen dataclass of this strategy's own options, checked by the recipe loader."""
    framework: ClassVar[str | None]
    """Importable module that workers need (`torch`), which is also the name of dtrain's extra; None: none."""

    def preload(self, job: Job) -> tuple[str, ...]:
        """Pure. Modules the zygote imports before it forks workers."""

    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """Pure. Worker processes of a node with this number of replicas: one a device, or one a node."""

    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """Pure. The environment of one rank, as the framework's own launcher would set it. It is made in the worker."""


@runtime_checkable
class TrainingStrategy(Protocol):
    """A strategy that can train tasks and functions, not just host a script."""

    def join(self, context: WorkerContext) -> AbstractContextManager[TrainingBackend]:
        """Collective. Connect to the others; leaving the context disconnects."""


@runtime_checkable
class NeedsService(Protocol):
    """A strategy whose workers, or whose scripts, need something to be served by rank 0 while they run."""

    def serve(self, context: WorkerContext) -> AbstractContextManager[None]:
        """Entered by rank 0 before anybody's code runs; may serve from a thread."""


@runtime_checkable
class NeedsAllAddresses(Protocol):
    """A strategy whose environment may name every worker (TF_CONFIG): that is told to all of them, which costs their square."""

    def needs_all_addresses(self, processes: int) -> bool:
        """Pure. Whether it does with these options on this number of worker processes."""


@runtime_checkable
class ExplainsErrors(Protocol):
    """A strategy that knows errors of its framework whose text does not say what to do."""

    def explain(self, error: BaseException) -> str:
        """Pure. What this error means and what to do, in one line; '' if it says so itself or is not known."""


@runtime_checkable
class ClassifiesErrors(Protocol):
    """A strategy that knows the exceptions of its framework."""

    def classify(self, type_names: Sequence[str], message: str) -> FailureKind | None:
        """Pure. The class of an exception from the names of its type and bases, nearest first, and its text; None if it is
        none of the framework's."""


@runtime_checkable
class KnowsCollectives(Protocol):
    """A strategy that knows where its framework waits for other ranks; asked when a run hangs."""

    def waits_in(self, file: str, function: str) -> str:
        """Pure. The collective that a rank with this frame in its stack waits in, as people call it; '' if it is none."""


def error_kind(strategy: Strategy, type_names: Sequence[str], message: str) -> FailureKind:
    """Pure. The class of an exception: the strategy's answer if it knows it, otherwise what Python's own types say."""
    known = strategy.classify(type_names, message) if isinstance(strategy, ClassifiesErrors) else None
    return known or exception_kind(type_names, message)


@runtime_checkable
class MetaStrategy(Protocol):
    """A strategy that stands for another one."""

    def resolve(self, job: Job) -> tuple[str, dict[str, Any], str]:
        """Pure. Name and options of the strategy to use, and why."""


@runtime_checkable
class SplitsUnevenly(Protocol):
    """A strategy that may train with parts of the batch that differ by a sample, so that any number of workers will do
    after nodes were lost; its backend is a `WeighsShards`."""

    def splits_unevenly(self, job: Job) -> bool:
        """Pure. Whether it can for this job."""


@runtime_checkable
class WeighsShards(Protocol):
    """A training backend whose shards may differ in size."""

    def weigh(self, weights: Sequence[float]) -> None:
        """Set the factors of the losses of this process's shards in each `step`: their sum, averaged over the ranks,
        is then the mean over the global batch."""


@runtime_checkable
class MeasuresSteps(Protocol):
    """A training backend that knows more of a step than its loss."""

    def measured(self) -> dict[str, float]:
        """`learning_rate` and `gradient_norm` of the newest step that is reported (every `train.log_every`), with `/NAME` if there
        are several; what is not known is left out. Called after such a step; may wait for the device."""


@runtime_checkable
class TimesPhases(Protocol):
    """A training backend that can tell a rank's own work from waiting for others."""

    def phases(self) -> Mapping[str, float]:
        """Mean seconds of the phases of `dtrain.api.phases` that it measures, in the steps since the last call whose end is known;
        {} if there is none. Does not wait."""


@runtime_checkable
class MeasuresDeviceMemory(Protocol):
    """A strategy whose framework counts the memory of a device."""

    def peak_device_memory(self) -> int:
        """Return, in a worker, the most bytes that its devices have held at once; 0: they are CPUs, or it is not
        known."""


@runtime_checkable
class ForksSafely(Protocol):
    """A training backend whose process may fork data workers while it trains: its framework's threads hold no lock that
    these would wait for. They fetch samples, and use no device."""

    forks_safely: bool


@dataclass(frozen=True)
class NetworkMeasured:
    """How well the nodes of a run reach each other."""

    clocks_apart: float
    """Seconds between the clock that is furthest ahead and the one that is furthest behind."""
    payload_bytes: int
    """Size of each all_reduce."""
    bytes_per_second: dict[int, float]
    """Rank of the neighbour → speed of an all_reduce with it, on the rank that leads the pair."""


@runtime_checkable
class MeasuresNetwork(Protocol):
    """A strategy whose framework can measure the network; `dtrain doctor` asks its class."""

    framework: ClassVar[str | None]

    @staticmethod
    def measure_network(rank: int, leaders: Sequence[int], world_size: int) -> NetworkMeasured:
        """Collective, in all workers of a run of its own. `leaders` has one rank of each node."""


Fetch = Callable[[Path, Collection[str]], None]
"""A function like `FetchesFiles.fetch`."""


def nothing_to_fetch(folder: Path, files: Collection[str]) -> None:
    """For a checkpoint that is whole on this node."""


@runtime_checkable
class FetchesFiles(Protocol):
    """A training backend that calls `fetch` with a checkpoint's folder and the files of tensors in it that it is about to read:
    others need not be on this node. Set before `load`; waits, and raises `CheckpointError`."""

    fetch: Fetch


class StepProfiler(Protocol):
    """A running profile."""

    def stop(self, file: Path) -> str:
        """Write it, in a form that Perfetto or TensorBoard opens, to this file or one whose name begins so; a table of the
        operations that took the most time, or ''."""


@runtime_checkable
class ProfilesSteps(Protocol):
    """A training backend whose framework has a profiler."""

    def start_profile(self, file: Path) -> StepProfiler:
        """Begin to profile this process."""


@runtime_checkable
class SuspendsTimeouts(Protocol):
    """A training backend whose collectives fail after a time."""

    def suspend_timeouts(self) -> None:
        """Have collectives that begin from now on wait for as long as it takes: a person debugs a rank."""


@runtime_checkable
class ChecksInstallation(Protocol):
    """A strategy or cluster that needs more than its framework; `dtrain plugins` asks its class."""

    @staticmethod
    def missing_here() -> str:
        """Does not wait. Why it cannot work on this machine and what to do, or ''."""


@runtime_checkable
class ValidatesResources(Protocol):
    """A strategy that can refuse a job before anything starts."""

    def problems(self, resources: Resources) -> list[str]:
        """Pure. What cannot work with these resources, each with what to do instead."""
