"""The training backend that a worker trains through: one class for each framework, yielded by `TrainingStrategy.join`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dtrain.common.errors import UserError
from dtrain.common.lazy_dataclass import dataclass

if TYPE_CHECKING:  # an agent imports this module, and must be light
    from dtrain.api.in_memory import SnapshotPart
    from dtrain.api.operations import Operation
    from dtrain.api.step_checks import Judge
    from dtrain.api.weights import ReadWeights, Unmatched
    from dtrain.checkpoint.store import Files
    from dtrain.job.job import Train

Fetch = Callable[[Path, Collection[str]], None]
"""Brings the files of these names into a folder of a checkpoint; for backends with `fetches`."""


def nothing_to_fetch(folder: Path, files: Collection[str]) -> None:
    """For a checkpoint that is whole on this node."""


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

    def memory_part(self) -> SnapshotPart | None:
        """For a snapshot that can be used without being written, if its backend `stays_in_memory`. Waits until the copy is complete. None:
        this process has no part of the state."""


class StepProfiler(Protocol):
    """A running profile."""

    def stop(self, file: Path) -> str:
        """Write it, in a form that Perfetto or TensorBoard opens, to this file or one whose name begins so; a table of the
        operations that took the most time, or ''."""


LossApart = tuple[float, float | None] | None
"""A loss, and its weight if the task gives one."""


class TrainingBackend(ABC):
    """The training of one worker, in one framework, together with all the others; yielded by `Strategy.join`."""

    @abstractmethod
    def build(self, task: Any, train: Train) -> tuple[Any, Any]:
        """Collective. Model and optimizer from `task.model()` and `task.optimizer(model)`, wrapped, the same weights
        on every rank from `train.seed`. From a task with `models` and `optimizers`: dicts of both, by the task's names.
        Raises `UserError`, which names `task.name`, for what the task may not give."""

    @abstractmethod
    def step(self, batches: Sequence[Any], seeds: Sequence[int], rate: float, number: StepNumber = FIRST_STEP) -> Any:
        """Collective. One optimizer step on this process's shards, `rate` times the base learning rate.

        `batches` and `seeds` have one entry a shard, in shard order. Returns the mean loss of these shards, or a dict
        of it ("loss") and other numbers, as scalars that `float` reads (which may wait for the device); of a number that not all
        shards have, the sum of its weighted values, and the sum of these weights. A task with
        `train_step` gets the whole part of this process as one batch, and the backward pass is its own. Raises
        `NonFiniteLoss` or `NonFiniteGradient` as soon as that costs no wait, if `train.on_nonfinite` is `stop`."""

    @abstractmethod
    def feed(self, batch: Any, seed: int) -> Any:
        """Seed the framework's randomness and give the batch as its tensors on this worker's device, for a loop of the
        user's own."""

    @abstractmethod
    def evaluate(
        self, batches: Iterable[tuple[Any, int]], metrics: Callable[[Any, Any], Any] | None = None
    ) -> dict[str, float]:
        """Collective. Mean of `metrics(model, batch)`, the task's own if not given, over all samples of all ranks; every
        rank gives as many batches, each with the number of samples that count (0: a filler). Changes no state."""

    @abstractmethod
    def mean(self, values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, float]:
        """Collective. Mean of named values over the ranks that have the name, with the weight of each (1 if none are given). The
        result is the same on every rank."""

    def outputs(
        self, batches: Iterable[tuple[Any, int]], function: Callable[[Any, Any], Any]
    ) -> tuple[Any, ...] | None:
        """Collective. What `function(model, batch)` returned of all samples that count, in the order of the data, on rank 0: arrays with
        the samples along the first axis. None on the other ranks. Changes no state."""
        raise UserError("metrics_of: this strategy cannot collect the outputs of all held-out samples")

    def loss_apart(self, batch: Any, seed: int) -> LossApart:
        """Compute the task's loss of a batch in evaluation mode, by this rank alone and on copies, so that nothing changes; None if that
        cannot be had."""
        return None

    def check_replicas(self) -> None:  # noqa: B027  an ability
        """Collective. Raise `UserError` on every rank if state that all ranks should have alike differs."""

    def remark(self) -> str:
        """Return what the user should know of the snapshots so far, once; '' if there is nothing."""
        return ""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Collective. Copy of model and optimizer state; training may go on when it returns."""

    @abstractmethod
    def load(self, folder: Path, fetch: Fetch = nothing_to_fetch) -> None:
        """Collective. State from a checkpoint folder, whatever strategy of this framework and number of workers wrote it; before it
        reads files of tensors, it calls `fetch` with them. Raises `CheckpointError` that names what does not fit."""

    @abstractmethod
    def register(self, name: str, thing: Any) -> None:
        """Collective. Keep `thing.state_dict()` in checkpoints under this name; if a checkpoint was loaded, give it the
        state it had."""

    def restore_last(self) -> list[str]:
        """Collective. Restore, before the first step and once everything with a state exists, what constructors of the user's may have
        changed since `load`; returns the settings that the user's code has otherwise than when the run began, which are applied."""
        return []

    def completed(self) -> None:  # noqa: B027  an ability
        """A step of the user's own loop is done, and saved if that was due."""

    @abstractmethod
    def unclaimed(self) -> list[str]:
        """Names in the loaded checkpoint that nothing was registered under."""

    @abstractmethod
    def whole(self) -> Any:
        """Collective. The trained model (name → model if there are several) as the user made it, with all its weights, on
        rank 0; None on the others."""

    # --- abilities: a backend that lacks one leaves it as it is ---

    forks_safely: ClassVar[bool] = False
    """Whether this process may fork data workers while it trains: the framework's threads hold no lock that these would wait for. They
    fetch samples, and use no device."""
    fetches: ClassVar[bool] = False
    """Whether `load` calls `fetch`; otherwise all files are on this node when it is called."""
    stays_in_memory: ClassVar[bool] = False
    """Whether its snapshots have a `memory_part`."""
    logs_operations: ClassVar[bool] = False
    """Whether `operations_told` reports operations."""
    finds_nonfinite: ClassVar[bool] = False
    """Whether `origin` can be asked."""
    scales_loss: bool = False
    """Whether it multiplies the loss by a factor that it lowers after a gradient that is not finite (fp16); it needs `judge_by` then."""

    def weigh(self, weights: Sequence[float]) -> None:  # noqa: B027  an ability
        """Set the factors of the losses of this process's shards in each `step`: their sum, averaged over the ranks, is then the mean over
        the global batch. Only strategies that split unevenly have shards of different sizes."""

    def seed_optimizers(self, seed: int) -> None:  # noqa: B027  an ability
        """Set the seed, the same on every rank, of the random numbers that optimizers draw in the next step."""

    def measured(self) -> dict[str, float]:
        """`learning_rate` and `gradient_norm` of the newest step that is reported (every `train.log_every`), with `/NAME` if there
        are several; what is not known is left out. Called after such a step; may wait for the device."""
        return {}

    def phases(self) -> Mapping[str, float]:
        """Mean seconds of the phases of `dtrain.api.phases` that it measures, in the steps since the last call whose end is known;
        {} if there is none. Does not wait."""
        return {}

    def start_profile(self, file: Path) -> StepProfiler | None:
        """Begin to profile this process; None: the framework has no profiler."""
        return None

    def suspend_timeouts(self) -> None:  # noqa: B027  an ability
        """Have collectives that begin from now on wait for as long as it takes: a person debugs a rank."""

    def start_from(self, read: ReadWeights, source: str, *, strict: bool) -> Unmatched | None:
        """Collective, after `build`. Give the model on every rank the weights that `read` gives on at least one. What does not fit is
        raised as a `UserError` that lists all of it or, unless `strict`, left out and returned. None: this backend cannot."""
        return None

    def judge_by(self, judge: Judge) -> None:  # noqa: B027  an ability
        """Have every `step`, from the first one on, ask this on all ranks with the same numbers before the optimizer steps. After a
        False the model is as it was before the step."""

    def leave_out(self) -> None:  # noqa: B027  an ability
        """A step passes without its batch; schedulers of the user's own go on."""

    def origin(self, batch: Any, seed: int, *, gradient: bool) -> str | None:
        """Compute a shard of this rank once more, with the weights as they are: the batch, the module or the loss that has the
        first value that is not finite or, with `gradient`, the first parameter whose gradient has one; '' if it has none, None if
        that cannot be told. Not collective; changes buffers of the model."""
        return None

    def operations_told(self, tell: Callable[[Operation], None]) -> AbstractContextManager[None]:
        """Around a step: `tell` is called after each operation, in the same order whenever the step is done again; where possible in the
        thread and below the frames that called it."""
        return nullcontext()

    def gradient_checksums(self) -> list[int]:
        """Return, with `train.exact` and for each shard of the newest step, the sum of its gradient's bits modulo 2^32; see
        `dtrain.record.gradient_ledger`. [] if it has none."""
        return []

    def shard_passes(self, batch: Any, seeds: Sequence[int]) -> Iterator[Any]:
        """Yield, with `train.exact`, equal parts of this worker's batch, one for each seed. What was computed of a part (forward and backward)
        when the next one is asked for is a pass of its own; after the last one the gradients are the mean over all shards of all ranks."""
        raise NotImplementedError

    def fingerprints(self) -> list[str]:
        """Collective, with `train.exact`. Of each rank, the digest of a small computation, whose bits depend on the kernels that it ran in;
        [] if it has none."""
        return []
