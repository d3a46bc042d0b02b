"""Reports of a worker to the supervisor, through its agent, beside the events of `dtrain.record.events`."""

from __future__ import annotations

from dataclasses import field

from dtrain.checkpoint.store import Files
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.message import Message
from dtrain.record.event import Event


@dataclass(frozen=True)
class RankTimes(Message):
    """How long a step of this rank takes, as means over its last steps; each rank reports it every few seconds."""

    step: int
    """Steps done."""
    steps: int
    """Number of steps that the means are over."""
    step_seconds: float
    phases: dict[str, float]
    """Seconds in the phases of `dtrain.api.phases` that are known under this strategy."""


MOST_RANKS = 64
"""Ranks that report their memory; the others need about as much."""


@dataclass(frozen=True)
class StopAsked(Message):
    """The user's function wants the run to end well before its last step."""

    reason: str


@dataclass(frozen=True)
class ShardWritten(Message):
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
class MemoryOffered(Message):
    """To the agent: a buffer of this rank for in-memory checkpoints. Without descriptors, the rank holds no part of
    the state."""

    buffer: int = -1
    """File descriptor, in the worker's process, of the memory with the tensors."""
    record: int = -1
    """File descriptor of its record; see `dtrain.checkpoint.memory_record`."""


@dataclass(frozen=True)
class SaveFailed(Message):
    """This rank's shard of a checkpoint could not be written."""

    step: int
    error: str


@dataclass(frozen=True)
class StopProposal(Message):
    """The first step that this rank does not begin without an answer; see `dtrain.worker.control_channel`."""

    step: int


@dataclass(frozen=True)
class DebuggerOutput(Message):
    """Output of the debugger in this rank."""

    text: str
    prompt: str = ""
    """If not empty, the debugger waits for a line of input."""


@dataclass(frozen=True)
class DebuggerResumed(Message):
    """The rank continues."""

    ended: bool = True
    """Whether the debugger has no breakpoints left, so that it does not stop again."""


@dataclass(frozen=True)
class EndedEarly(Message):
    """All ranks ended the run after so many steps, with its state saved, as the recipe has it (`train.stop_when`)."""

    step: int
    reason: str


@dataclass(frozen=True)
class LeftAtStep(Message):
    """This rank saved at the agreed step and leaves."""

    step: int


@dataclass(frozen=True)
class LoopPhase(Message):
    """dtrain's own loop does steps from now on, or something else (an evaluation, a checkpoint, the end) for a while."""

    stepping: bool


@dataclass(frozen=True)
class LoopLeft(Message):
    """This rank's function left its loop with steps undone."""

    step: int
    """Steps done."""


@dataclass(frozen=True)
class StepsDone(Message):
    """This rank's task or function came to its end, or left as agreed: exit code 0 without it is a failure."""


@dataclass(frozen=True)
class WorkerFailed(Message):
    """An exception ended this rank's code."""

    failure: str
    """The value of a `dtrain.job.failure_kinds.FailureKind`; '' if it follows from the message, which names the exception."""
    message: str
    traceback: str = ""
    where: str = ""
    exit_code: int = 1
    """Of the run, if this failure ends it."""


Report = (
    Event
    | RankTimes
    | StopAsked
    | ShardWritten
    | MemoryOffered
    | SaveFailed
    | StopProposal
    | DebuggerOutput
    | DebuggerResumed
    | EndedEarly
    | LeftAtStep
    | LoopPhase
    | LoopLeft
    | StepsDone
    | WorkerFailed
)
"""An event goes into the run's log as it is; from the others something follows."""
