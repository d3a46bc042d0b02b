"""The events of a run, one frozen dataclass each: what `events.jsonl` holds and what status, reports and the live view read.

A reader tolerates what it does not know: fields that a newer version added are dropped, and an event that is unknown or lacks a
field becomes an `UnknownEvent`, so older and newer runs can be read. Times are seconds since 1970, durations are seconds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from dtrain.common.serde import JsonObject, from_dict

KINDS: dict[str, type[Event]] = {}
"""Name of an event in the log → its class."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run."""

    name: ClassVar[str] = ""
    time: float = 0.0
    """When it was logged; the event log sets it."""

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        KINDS[name] = cls

    def to_dict(self) -> JsonObject:
        """As the log holds it: `time`, `event` (the name), then the fields."""
        fields = dataclasses.asdict(self)
        return {"time": fields.pop("time"), "event": self.name} | fields


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event, name="run"):
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


@dataclass(frozen=True, kw_only=True)
class NodeReady(Event, name="node"):
    """The agent of a node is up."""

    node: str
    host: str
    address: str = ""
    cpus: int = 0
    gpus: int = 0
    pid: int = 0
    """Of the agent."""


@dataclass(frozen=True, kw_only=True)
class NodeLost(Event, name="node_lost"):
    """A node, or its agent, is gone."""

    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Event, name="attempt"):
    """An attempt began: the workers' ports are asked for."""

    attempt: int
    step: int
    """Steps that are done at its begin."""
    checkpoint: str | None
    """Name of the checkpoint it begins from."""
    nodes: tuple[str, ...]
    workers: int
    processes: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkersStarted(Event, name="started"):
    """The workers of a node were forked."""

    attempt: int
    node: str
    pids: dict[str, int]
    """Rank → process id on its node."""


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Event, name="training"):
    """Rank 0 is about to do the first step of an attempt."""

    step: int
    total_steps: int
    samples: int | None = None
    """Size of the training data; 0: a stream, whose size is not known; None if a function has data of its own."""
    sanity_check_seconds: float = 0.0
    """That trying `metrics` before the first step took: mostly tracing and compiling."""
    began: float = 0.0
    """Seconds since 1970 on the clock of rank 0, as its ledger has it; 0: not known."""
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class UserWarned(Event, name="warning"):
    """Something about the user's task that they may not expect."""

    text: str
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress(Event, name="progress"):
    """Steps done so far, at most once a second."""

    step: int
    """Of the slowest rank."""
    steps: dict[str, int] = field(default_factory=dict)
    """Rank → steps; empty if there are many ranks."""
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class Metrics(Event, name="metrics"):
    """Loss and metrics of a training step, as means over the ranks."""

    step: int
    values: dict[str, float]
    samples_per_second: float | None = None
    data_wait: float | None = None
    """Share of the time since the last one that the training of rank 0 waited for data, 0 to 1."""
    data_workers: int = 0
    """Of rank 0."""
    optimizer: dict[str, float] = field(default_factory=dict)
    """`learning_rate` and `gradient_norm` of the step; with `/NAME` if there are several."""
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class MemoryUsed(Event, name="memory"):
    """The most memory that a rank has taken in an attempt, as it said at its end."""

    rank: int
    bytes: int
    """Resident; pages that it shares with others count in each."""
    device_bytes: int = 0
    """Of its devices, as the framework's allocator counts; 0: not known."""
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class NodesUsed(Event, name="usage"):
    """How busy the nodes are."""

    nodes: dict[str, dict[str, float]]
    """Node → numbers, see `dtrain.api.protocol.Heartbeat`; if there are many nodes, the means and the highest of all."""


@dataclass(frozen=True, kw_only=True)
class TrackerFailed(Event, name="tracker_failed"):
    """A tracker does not log; the run goes on."""

    tracker: str
    error: str
    ended: bool = False
    """The run ends with something that this tracker has not logged."""


@dataclass(frozen=True, kw_only=True)
class TrackerWorks(Event, name="tracker_works"):
    """It logs again, and has caught up."""

    tracker: str


@dataclass(frozen=True, kw_only=True)
class Evaluation(Event, name="evaluation"):
    """Metrics on the held-out data."""

    step: int
    values: dict[str, float]
    seconds: float = 0.0
    """That it took, up to this event."""
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class StepsProfiled(Event, name="profile"):
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
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event, name="checkpoint"):
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
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(Event, name="checkpoint_failed"):
    """A checkpoint could not be written or committed; training goes on."""

    step: int
    error: str
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointQuarantined(Event, name="checkpoint_damaged"):
    """A damaged checkpoint was set aside."""

    folder: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class LogShortened(Event, name="log_shortened"):
    """A rank's log had more than `logs.keep`."""

    rank: int
    removed: int
    """Bytes, of its middle."""
    problem: str = ""
    """Why they could not be removed."""


@dataclass(frozen=True, kw_only=True)
class StorageFailed(Event, name="storage_failed"):
    """Remote storage, or the run's own folder, does not answer."""

    error: str


@dataclass(frozen=True, kw_only=True)
class StorageWorks(Event, name="storage_works"):
    """It answers again."""


@dataclass(frozen=True, kw_only=True)
class FailureOccurred(Event, name="failure"):
    """An attempt failed; this is the cause."""

    kind: str
    """See `dtrain.spec.failures.FailureKind`."""
    message: str
    rank: int | None = None
    node: str = ""
    step: int | None = None
    where: str = ""
    traceback: str = ""
    code: int = 1
    saved_step: int = 0
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class DecisionMade(Event, name="decision"):
    """The failure policy's answer to a failure."""

    retry: bool
    reason: str
    delay_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StopRequested(Event, name="stopping"):
    """A person, a signal or the cluster wants the run to stop."""

    why: str
    now: bool = False
    """At once, without saving."""


@dataclass(frozen=True, kw_only=True)
class ResizeRequested(Event, name="moving"):
    """The workers were asked to save and leave, to go on with other nodes."""

    why: str


@dataclass(frozen=True, kw_only=True)
class DrainAgreed(Event, name="leaving"):
    """All ranks agreed on the step to save and leave at."""

    step: int
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class HangDetected(Event, name="hang"):
    """Nothing moves; the stacks of all ranks go to their logs."""

    rank: int
    steps: dict[str, int | None] = field(default_factory=dict)
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class Requeued(Event, name="requeued"):
    """The cluster was asked to start the run again later."""

    step: int | None
    """Of the newest checkpoint; None if it is not known."""
    words: str
    """What the cluster was asked."""
    without: tuple[str, ...] = ()
    """Nodes to exclude."""


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event, name="end"):
    """The supervisor left the run."""

    exit_code: int
    reason: str
    report: dict[str, float] = field(default_factory=dict)
    """Seconds by kind; see `dtrain.run.goodput.account_of`."""


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event, name=""):
    """An event of another version of dtrain."""

    fields: JsonObject
    """As the log holds it."""

    def to_dict(self) -> JsonObject:
        """As it was read."""
        return self.fields


def from_log(fields: JsonObject) -> Event:
    """The event of one line of the log."""
    kind: Any = KINDS.get(fields.get("event") or "", UnknownEvent)
    known = _fields(kind)
    try:
        event: Event = from_dict(kind, {name: value for name, value in fields.items() if name in known})
        return event
    except (TypeError, ValueError, AttributeError):
        time = fields.get("time")
        return UnknownEvent(time=float(time) if isinstance(time, int | float) else 0.0, fields=fields)


@cache
def _fields(kind: Any) -> frozenset[str]:
    return frozenset(one.name for one in dataclasses.fields(kind))
