"""What a worker reports to the supervisor, through its agent: one frozen dataclass each.

On the way a report is a dict with its name under `say`; `decode` makes it typed again. Fields that are unknown are dropped.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_args

from dtrain.checkpoint.store import Files
from dtrain.common.serde import JsonObject, from_dict, to_dict
from dtrain.record.debug_session import Reason


@dataclass(frozen=True)
class TrainingBegan:
    """Rank 0: the first step of this attempt is next."""

    step: int
    total_steps: int
    samples: int | None
    """Size of the training data; 0: a stream, whose size is not known; None if a function has data of its own."""
    sanity_check_seconds: float = 0.0
    """Duration of the trial of `metrics` before the first step (`train.sanity_check`): mostly tracing and compiling."""
    began: float = 0.0
    """Seconds since 1970, on the clock of rank 0."""


@dataclass(frozen=True)
class StepMetrics:
    """Rank 0: means over the ranks for a training step."""

    step: int
    values: dict[str, float]
    samples_per_second: float | None = None
    data_wait: float | None = None
    """Share of the time since the last report that the training of rank 0 waited for data, 0 to 1."""
    data_workers: int = 0
    """Of rank 0."""
    optimizer: dict[str, float] = field(default_factory=dict)
    """`learning_rate` and `gradient_norm` of this step; with `/NAME` if there are several."""


@dataclass(frozen=True)
class BadStep:
    """Rank 0: the loss or the gradient of a step was not finite, or jumped; see `dtrain.record.events.BadStep`."""

    step: int
    why: str
    answer: str
    """`skip`, `warn`, or `rollback`: then all ranks leave, and the next attempt goes on without this step."""
    metric: str = ""
    value: float | None = None
    rank: int | None = None
    shard: int | None = None


@dataclass(frozen=True)
class RankTimes:
    """How long a step of this rank takes, as means over its last steps; each rank reports it every few seconds."""

    step: int
    """Steps done."""
    steps: int
    """Number of steps that the means are over."""
    step_seconds: float
    phases: dict[str, float]
    """Seconds in the phases of `dtrain.api.phases` that are known under this strategy."""


@dataclass(frozen=True)
class EvaluationMetrics:
    """Rank 0: means over the held-out data."""

    step: int
    values: dict[str, float]
    seconds: float = 0.0
    """Duration of the evaluation."""


@dataclass(frozen=True)
class UserWarned:
    """Rank 0: something the user may not expect."""

    text: str


@dataclass(frozen=True)
class MemoryUsed:
    """Peak memory of this rank; the first `MOST_RANKS` ranks report it at their end."""

    bytes: int
    """Peak resident set size (VmHWM in /proc); pages shared between processes count in each of them."""
    device_bytes: int = 0
    """Peak on its devices, as the framework's allocator counts; 0: not known."""


MOST_RANKS = 64
"""Ranks that report their memory; the others need about as much."""


@dataclass(frozen=True)
class LogShortened:
    """The agent: this rank's log had more than `logs.keep`."""

    removed: int
    """Number of bytes that were cut out of the middle of the log."""
    problem: str = ""
    """Why nothing could be cut out."""


@dataclass(frozen=True)
class StopAsked:
    """The user's function wants the run to end well before its last step."""

    reason: str


@dataclass(frozen=True)
class ShardWritten:
    """This rank's shard of a checkpoint is on disk."""

    step: int
    files: Files = field(default_factory=dict)
    weights: str = ""
    """Hex digest of the model state in it."""
    seconds: float = 0.0
    """Seconds from the copy until the files are flushed to disk."""
    stall_seconds: float = 0.0
    """Seconds that the training stood still for the copy."""


@dataclass(frozen=True)
class MemoryOffered:
    """To the agent: a buffer of this rank for in-memory checkpoints. Without descriptors, this rank holds no part of the state."""

    buffer: int = -1
    """File descriptor, in the worker's process, of the memory with the tensors."""
    record: int = -1
    """File descriptor of its record; see `dtrain.checkpoint.memory_record`."""


@dataclass(frozen=True)
class MemoryInterval:
    """Rank 0: how often in-memory checkpoints are made."""

    every_steps: int
    seconds: float
    """Seconds that the training stands still for one of them."""
    bytes: int
    """Size of this rank's part."""


@dataclass(frozen=True)
class SaveFailed:
    """This rank's shard of a checkpoint could not be written."""

    step: int
    error: str


@dataclass(frozen=True)
class StopProposal:
    """The first step that this rank does not begin without an answer; see `dtrain.worker.control_channel`."""

    step: int


@dataclass(frozen=True)
class StepsProfiled:
    """The answer to `dtrain profile`: this rank has written a profile of some steps."""

    request: str
    step: int
    """The first of them, counted from 0."""
    steps: int
    file: str
    """Path of the profile, relative to the run folder."""
    operations: str = ""
    """A table of the operations that took the most time."""
    problem: str = ""
    """Why there is no profile."""


@dataclass(frozen=True)
class DebuggerStopped:
    """This rank is stopped for a debugger."""

    reason: Reason
    where: str
    """File and line, or the exception."""
    seconds: float | None = None
    """It continues after this time if no terminal attaches; None: a terminal is attached."""


@dataclass(frozen=True)
class DebuggerSaid:
    """Output of the debugger in this rank."""

    text: str
    prompt: str = ""
    """If not empty, the debugger waits for a line of input."""


@dataclass(frozen=True)
class DebuggerLeft:
    """This rank continues."""

    ended: bool = True
    """Whether the debugger has no breakpoints left, so that it does not stop again."""


@dataclass(frozen=True)
class EndedEarly:
    """All ranks ended the run after so many steps, with its state saved, as the recipe has it (`train.stop_when`)."""

    step: int
    reason: str


@dataclass(frozen=True)
class LeftAtStep:
    """This rank saved at the agreed step and leaves."""

    step: int


@dataclass(frozen=True)
class LoopPhase:
    """dtrain's own loop does steps from now on, or something else (an evaluation, a checkpoint, the end) for a while."""

    stepping: bool


@dataclass(frozen=True)
class LoopLeft:
    """This rank's function left its loop with steps undone."""

    step: int
    """Steps done."""


@dataclass(frozen=True)
class StepsDone:
    """This rank's task or function came to its end, or left as agreed: exit code 0 without it is a failure."""


@dataclass(frozen=True)
class WorkerFailed:
    """An exception ended this rank's code."""

    failure: str
    """The value of a `dtrain.job.failure_kinds.FailureKind`; '' if it follows from the message, which names the exception."""
    message: str
    traceback: str = ""
    where: str = ""
    exit_code: int = 1
    """Of the run, if this failure ends it."""


Report = (
    TrainingBegan
    | StepMetrics
    | BadStep
    | RankTimes
    | EvaluationMetrics
    | UserWarned
    | MemoryUsed
    | LogShortened
    | StopAsked
    | ShardWritten
    | MemoryOffered
    | MemoryInterval
    | SaveFailed
    | StopProposal
    | StepsProfiled
    | DebuggerStopped
    | DebuggerSaid
    | DebuggerLeft
    | EndedEarly
    | LeftAtStep
    | LoopPhase
    | LoopLeft
    | StepsDone
    | WorkerFailed
)
NAMES: dict[str, type[Any]] = {
    "training": TrainingBegan,
    "metrics": StepMetrics,
    "bad_step": BadStep,
    "times": RankTimes,
    "evaluation": EvaluationMetrics,
    "warning": UserWarned,
    "memory": MemoryUsed,
    "log_shortened": LogShortened,
    "stop": StopAsked,
    "part": ShardWritten,
    "memory_offered": MemoryOffered,
    "memory_interval": MemoryInterval,
    "save_failed": SaveFailed,
    "gate": StopProposal,
    "profiled": StepsProfiled,
    "debugger_stopped": DebuggerStopped,
    "debugger_said": DebuggerSaid,
    "debugger_left": DebuggerLeft,
    "ended_early": EndedEarly,
    "left": LeftAtStep,
    "phase": LoopPhase,
    "loop_left": LoopLeft,
    "finished": StepsDone,
    "failed": WorkerFailed,
}
"""Name in the protocol → class."""
_WORDS = {kind: name for name, kind in NAMES.items()}
assert set(get_args(Report)) == set(_WORDS)


def encode(report: Report) -> JsonObject:
    """A report as plain data."""
    return {"say": _WORDS[type(report)]} | to_dict(report)


def decode(body: JsonObject) -> Report:
    """The report of such a dict; raises `ValueError` for one that is none."""
    kind = NAMES.get(str(body.get("say")))
    if kind is None:
        raise ValueError(f"not a worker's report: {body.get('say')!r}")
    known = {one.name for one in dataclasses.fields(kind)}
    try:
        report: Report = from_dict(kind, {name: value for name, value in body.items() if name in known})
    except TypeError as error:
        raise ValueError(f"a worker's report lacks a field: {error}") from error
    return report
