"""The launcher's side of a strategy; the worker's is `dtrain.api.training_backend`.

A module that holds a strategy imports its framework inside functions only, so that a login node needs none.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.failure_kinds import FailureKind, exception_kind
from dtrain.job.job import Device, Job, Resources

if TYPE_CHECKING:  # an agent imports this module, and must be light
    from dtrain.api.bench_choice import MeasuredStrategies, StrategyChoice
    from dtrain.api.rank_memory import RankMemory
    from dtrain.api.training_backend import TrainingBackend

ERROR_FILE = "<error file of this rank>"
"""A value in `Strategy.environment` that stands for the path of the rank's own file, in which its program may leave
an error."""
RECORD_FILE = "<record of the collectives, then the rank>"
"""A value in `Strategy.gpu_environment` that stands for how the path begins that the rank's record is to be written to."""
RECORD_PIPE = "<pipe that asks for it, then the rank and .pipe>"
"""The same for a pipe that the rank's program makes and listens to: what is written there asks for the record."""


@dataclass(frozen=True)
class RecordedHang:
    """What the framework's own record tells of a hang."""

    text: str
    """In words: who waits where, and who does not."""
    ranks: frozenset[int]
    """Those that did not join the others; empty if all did."""


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
    (`Strategy.needs_all_addresses`)."""
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
class NetworkMeasured:
    """How well the nodes of a run reach each other."""

    clocks_apart: float
    """Seconds between the clock that is furthest ahead and the one that is furthest behind."""
    payload_bytes: int
    """Size of each all_reduce."""
    bytes_per_second: dict[int, float]
    """Rank of the neighbour → speed of an all_reduce with it, on the rank that leads the pair."""


class Strategy(ABC):
    """The launcher's side: everything here is pure unless it says otherwise, and importing its module imports no framework. What a
    strategy does not need it leaves as it is."""

    Options: ClassVar[type]
    """Frozen dataclass of this strategy's own options, checked by the recipe loader."""
    framework: ClassVar[str | None]
    """Importable module that workers need (`torch`), which is also the name of dtrain's extra; None: none."""
    knows_operations: ClassVar[bool] = False
    """Whether its training backend `logs_operations`."""
    measure_network: ClassVar[staticmethod[[int, Sequence[int], int], NetworkMeasured] | None] = None
    """Collective, in all workers of a run of its own, with the rank, one rank of each node, and the world size; `dtrain doctor` calls it.
    None: its framework cannot."""

    @abstractmethod
    def preload(self, job: Job) -> tuple[str, ...]:
        """Modules the zygote imports before it forks workers."""

    @abstractmethod
    def processes(self, workers_per_node: int, device: Device = "cpu") -> int:
        """Worker processes of a node with this number of replicas: one a device, or one a node."""

    @abstractmethod
    def environment(self, rank_info: RankInfo, rendezvous: RendezvousInfo) -> dict[str, str]:
        """The environment of one rank, as the framework's own launcher would set it. It is made in the worker."""

    def gpu_environment(self) -> dict[str, str]:
        """Return what the environment of a rank on GPUs has besides. It is made in the worker."""
        return {}

    def explain_hang(self, records: Mapping[int, bytes]) -> RecordedHang | None:
        """Pure. Explain a hang by what the programs recorded of their collectives (rank → the file at RECORD_FILE); None if that does not
        tell."""
        return None

    def serve(self, context: WorkerContext) -> AbstractContextManager[None]:
        """Serve what workers or scripts need from rank 0 while they run: entered there before anybody's code runs; may serve from a
        thread."""
        return nullcontext()

    def needs_all_addresses(self, processes: int) -> bool:
        """Whether the environment names every one of so many workers (TF_CONFIG): sending all addresses to all of them is O(n²)."""
        return False

    def explain(self, error: BaseException) -> str:
        """Explain an error of the framework and what to do, in one line; '' if it says so itself or is not known."""
        return ""

    def classify(self, type_names: Sequence[str], message: str) -> FailureKind | None:
        """The class of an exception from the names of its type and bases, nearest first, and its text; None if it is none of the
        framework's."""
        return None

    def waits_in(self, file: str, function: str) -> str:
        """The collective that a rank with this frame in its stack waits in, as people call it; '' if it is none."""
        return ""

    def resolve(self, job: Job) -> StrategyChoice | None:
        """Name and options of the strategy that this one stands for, and why; None: it stands for itself."""
        return None

    def learned(self, by_rule: StrategyChoice, measured: MeasuredStrategies) -> StrategyChoice:
        """Choose what to use, with the reason, if `resolve` chose `by_rule` and this was measured by `dtrain bench`."""
        return by_rule

    def splits_unevenly(self, job: Job) -> bool:
        """Whether parts of the batch may differ by a sample, so that any number of workers will do after nodes were lost; its backend
        then has `weigh`."""
        return False

    def inexact(self, job: Job) -> list[str] | None:
        """List what keeps this job from the same bits on every number of workers (`train.exact`), each with what to do instead; None: this
        strategy never has them."""
        return None

    def unchecked(self, job: Job) -> str | None:
        """Say what keeps its backend from looking at the steps of this job before the optimizer steps; '' if nothing does, None: this
        strategy never can."""
        return None

    def scales_loss(self) -> str:
        """Name the option with which its backend `scales_loss` (`precision: fp16`); '' if none does."""
        return ""

    def problems(self, resources: Resources) -> list[str]:
        """List what cannot work with these resources, each with what to do instead."""
        return []

    def rank_memory(self, task: Any, job: Job) -> RankMemory | None:
        """Tell how much memory a rank needs for the task of this job; in a process of its own, which may import the framework. None: not
        known."""
        return None

    def peak_device_memory(self) -> int:
        """In a worker, the most bytes that its devices have held at once; 0: they are CPUs, or it is not known."""
        return 0

    @staticmethod
    def missing_here() -> str:
        """Does not wait. Why it cannot work on this machine though its framework is installed, and what to do, or ''."""
        return ""


class TrainingStrategy(Strategy):
    """A strategy that can train tasks and functions, not just host a script."""

    @abstractmethod
    def join(self, context: WorkerContext) -> AbstractContextManager[TrainingBackend]:
        """Collective. Connect to the others; leaving the context disconnects."""


def error_kind(strategy: Strategy, type_names: Sequence[str], message: str) -> FailureKind:
    """Pure. The class of an exception: the strategy's answer if it knows it, otherwise what Python's own types say."""
    return strategy.classify(type_names, message) or exception_kind(type_names, message)
