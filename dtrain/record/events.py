"""The events of a run, one frozen dataclass each: what `events.jsonl` holds and what status, reports and the live view read."""

from __future__ import annotations

from dataclasses import field

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.event import AttemptEvent as AttemptEvent
from dtrain.record.event import Event as Event
from dtrain.record.event import UnknownEvent as UnknownEvent
from dtrain.record.event import from_log as from_log
from dtrain.record.failure_events import RESCALE as RESCALE
from dtrain.record.failure_events import BadStep as BadStep
from dtrain.record.failure_events import DecisionMade as DecisionMade
from dtrain.record.failure_events import FailureOccurred as FailureOccurred
from dtrain.record.failure_events import HangDetected as HangDetected


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event, was="run"):
    """A supervisor began to work on the run."""

    run: str
    target: str
    strategy: str
    cluster: str
    workers: int
    nodes: int
    kind: str = ""
    """task, function or script."""
    global_batch: int = 0
    preload: tuple[str, ...] = ()
    storage: str | None = None
    """URL of the run on remote storage."""
    code: str = ""
    """Digest of the code that it trains from, see `dtrain.record.code_snapshot`."""
    format: int = 1
    """Format number of the following events, see `dtrain.record.event.FORMAT`; logs without it are of format 1."""


@dataclass(frozen=True, kw_only=True)
class NodesAwaited(Event):
    """The nodes cannot start before something is free that another run has."""

    why: str
    """What it is and who has it; '' when the wait is over."""


@dataclass(frozen=True, kw_only=True)
class NodeReady(Event, was="node"):
    """The agent of a node is up."""

    node: str
    host: str
    address: str = ""
    cpus: int = 0
    gpus: int = 0
    pid: int = 0
    """Process id of the agent."""


@dataclass(frozen=True, kw_only=True)
class NodeChecked(Event):
    """The agent of a node has answered the checks before the first step."""

    node: str
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeLost(Event):
    """A node, or its agent, is gone."""

    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NodeAvoided(Event):
    """Failures began on a machine, and the run goes on without it."""

    node: str
    """The cluster's name of the node."""
    evidence: tuple[str, ...]
    until: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Event, was="attempt"):
    """An attempt began: the workers' ports are asked for."""

    attempt: int
    step: int
    """Steps that are done at its begin."""
    checkpoint: str | None
    """Name of the checkpoint it begins from; None: it begins the run, or goes on from memory."""
    memory: bool = False
    """Whether it goes on from an in-memory checkpoint."""
    nodes: tuple[str, ...]
    workers: int
    processes: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkersStarted(Event, was="started"):
    """The workers of a node were forked."""

    attempt: int
    node: str
    pids: dict[str, int]
    """Rank → process id on its node."""


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(AttemptEvent, was="training"):
    """Rank 0 is about to do the first step of an attempt."""

    step: int
    total_steps: int
    samples: int | None = None
    """Size of the training data; 0: a stream, whose size is not known; None if a function has data of its own."""
    sanity_check_seconds: float = 0.0
    """Duration of the trial of `metrics` before the first step: mostly tracing and compiling."""
    began: float = 0.0
    """Seconds since 1970 on the clock of rank 0, as its ledger has it; 0: not known."""


@dataclass(frozen=True, kw_only=True)
class UserWarned(AttemptEvent, was="warning"):
    """Something about the user's task that they may not expect."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Progress(AttemptEvent):
    """Steps done so far, at most once a second."""

    step: int
    """Steps of the slowest rank."""
    steps: dict[str, int] = field(default_factory=dict)
    """Rank → steps; empty if there are many ranks."""


@dataclass(frozen=True, kw_only=True)
class Metrics(AttemptEvent):
    """Loss and metrics of a training step, as means over the ranks."""

    step: int
    values: dict[str, float]
    samples_per_second: float | None = None
    steps_per_second: float | None = None
    """Of a loop that does not say how many samples a step has."""
    data_wait: float | None = None
    """Share of the time since the last one that the training of rank 0 waited for data, 0 to 1."""
    data_workers: int = 0
    """Data workers of rank 0."""
    optimizer: dict[str, float] = field(default_factory=dict)
    """`learning_rate` and `gradient_norm` of the step; with `/NAME` if there are several."""


@dataclass(frozen=True, kw_only=True)
class MemoryUsed(AttemptEvent, was="memory"):
    """The most memory that a rank has taken in an attempt, as it said at its end."""

    rank: int
    bytes: int
    """Resident; pages that it shares with others count in each."""
    device_bytes: int = 0
    """Peak on its devices, as the framework's allocator counts; 0: not known."""


@dataclass(frozen=True, kw_only=True)
class NodesUsed(Event, was="usage"):
    """How busy the nodes are."""

    nodes: dict[str, dict[str, float]]
    """Node → numbers, see `dtrain.api.protocol.Heartbeat`; if there are many nodes, the means and the highest of all."""


@dataclass(frozen=True, kw_only=True)
class TrackerFailed(Event):
    """A tracker does not log; the run goes on."""

    tracker: str
    error: str
    ended: bool = False
    """The run ends with something that this tracker has not logged."""


@dataclass(frozen=True, kw_only=True)
class TrackerWorks(Event):
    """A tracker logs again, and has caught up."""

    tracker: str


@dataclass(frozen=True, kw_only=True)
class Evaluation(AttemptEvent):
    """Metrics on the held-out data."""

    step: int
    values: dict[str, float]
    seconds: float = 0.0
    """Duration up to this event."""


@dataclass(frozen=True, kw_only=True)
class StepsProfiled(AttemptEvent, was="profile"):
    """The answer to `dtrain profile`: a rank has written a profile of some steps."""

    rank: int
    request: str
    step: int
    steps: int
    file: str
    """Relative to the run folder."""
    operations: str = ""
    """A table of those that took the most time."""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(AttemptEvent, was="checkpoint"):
    """A checkpoint was committed."""

    step: int
    folder: str
    bytes: int
    weights: str
    """Hex digest of the model state."""
    seconds: float = 0.0
    """Until it was written, hashed and flushed."""
    stall_seconds: float = 0.0
    """Training stood still to copy the state."""


@dataclass(frozen=True, kw_only=True)
class MemoryInterval(AttemptEvent):
    """How often in-memory checkpoints are made, and what one costs."""

    every_steps: int
    seconds: float
    """Training stands still for each."""
    bytes: int
    """Size of rank 0's part."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(AttemptEvent):
    """A checkpoint could not be written or committed; training goes on."""

    step: int
    error: str


@dataclass(frozen=True, kw_only=True)
class CheckpointQuarantined(Event, was="checkpoint_damaged"):
    """A damaged checkpoint was set aside."""

    folder: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class StateTakenOver(Event):
    """The run was given the state that another run saved at the same step: weights, optimizer and all."""

    step: int
    run: str
    """Id of the other run."""
    weights: str
    """Hex digest of the model state."""


@dataclass(frozen=True, kw_only=True)
class LogShortened(AttemptEvent):
    """A rank's log had more than `logs.keep`."""

    rank: int
    removed: int
    """Bytes, of its middle."""
    problem: str = ""
    """Why they could not be removed."""


@dataclass(frozen=True, kw_only=True)
class StorageFailed(Event):
    """Remote storage, or the run's own folder, does not answer."""

    error: str


@dataclass(frozen=True, kw_only=True)
class StorageWorks(Event):
    """The remote storage, or the run folder, answers again."""

    place: str = "the remote storage"


@dataclass(frozen=True, kw_only=True)
class StopRequested(Event, was="stopping"):
    """A person, a signal or the cluster wants the run to stop."""

    why: str
    now: bool = False
    """Whether it stops at once, without saving."""


@dataclass(frozen=True, kw_only=True)
class ResizeRequested(Event, was="moving"):
    """The workers were asked to save and leave, to go on with other nodes."""

    why: str


@dataclass(frozen=True, kw_only=True)
class DrainAgreed(AttemptEvent, was="leaving"):
    """All ranks agreed on the step to save and leave at."""

    step: int


@dataclass(frozen=True, kw_only=True)
class DebuggerStopped(AttemptEvent):
    """A rank is stopped for a debugger (`dtrain debug`); meanwhile nothing counts as a hang."""

    rank: int
    reason: str
    """breakpoint, exception or step."""
    where: str
    seconds: float | None = None
    """The rank continues after this time if no terminal attaches; None: one is attached."""


@dataclass(frozen=True, kw_only=True)
class DebuggerLeft(AttemptEvent):
    """A rank continues that was stopped for a debugger."""

    rank: int
    seconds: float
    """Duration of the stop."""


@dataclass(frozen=True, kw_only=True)
class StragglerFound(AttemptEvent, was="straggler"):
    """The other ranks wait for this one in every step, for some time now."""

    rank: int
    node: str
    step: int
    phase: str
    """The slow phase, of `dtrain.api.phases`."""
    seconds: float
    """Seconds of a step in this phase."""
    usual_seconds: float
    """The median of all ranks."""


@dataclass(frozen=True, kw_only=True)
class StragglerOver(AttemptEvent):
    """A straggler has recovered, or its attempt has ended."""

    rank: int
    cost_seconds: float
    """Seconds that all ranks waited for it, in sum over the steps since it became slow."""


@dataclass(frozen=True, kw_only=True)
class Requeued(Event):
    """The cluster was asked to start the run again later."""

    step: int | None
    """Step of the newest checkpoint; None if it is not known."""
    words: str
    """The request to the cluster, in words."""
    without: tuple[str, ...] = ()
    """Nodes to exclude."""


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event, was="end"):
    """The supervisor left the run."""

    exit_code: int
    reason: str
    report: dict[str, float] = field(default_factory=dict)
    """Seconds by kind; see `dtrain.record.goodput.account_of`."""
