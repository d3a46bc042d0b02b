"""The messages between supervisor and agents: frozen values, one JSON line each.

Commands go down an agent's stdin, events come up its stdout. A command about an attempt names it, and so does every event
about one, so that a late message of an older attempt is recognised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import field, replace
from typing import Any

from dtrain.api.memory_protocol import MemoryCheckpoint, MemoryHeld, MemoryPeer, MemoryWritten, WriteMemory
from dtrain.api.reports import Report
from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.message import Message, OtherVersion, tagged, untagged
from dtrain.common.serde import JsonObject
from dtrain.record.events import WorkersStarted
from dtrain.record.inspection import SharedStacks, WorkerUsage

TAG = "type"
FORMAT = 2
"""Format number of the messages; supervisor and agents of different formats do not work together."""


@dataclass(frozen=True)
class SetJob(Message):
    """Command: work without the run folder, which this node does not see, on this job."""

    job: JsonObject
    code: str = ""
    """The snapshot of the run's code, in base64."""


@dataclass(frozen=True)
class ReservePorts(Message):
    """Command: reserve this number of ports for an attempt."""

    attempt: int
    workers: int
    memory_key: str = ""
    """If not empty, give in-memory checkpoints to agents that know this key."""


@dataclass(frozen=True)
class StartWorkers(Message):
    """Command: fork the node's workers."""

    attempt: int
    ranks: tuple[RankInfo, ...]
    rendezvous: RendezvousInfo
    checkpoint: str | None
    """Name of the one to resume from."""
    step: int
    """Steps that are done in it."""
    keep_log_bytes: int = 0
    """Bound of each worker's log; 0: everything is kept."""
    memory: MemoryCheckpoint | None = None
    """In-memory checkpoint to resume from instead."""
    partner: MemoryPeer | None = None
    """The agent whose parts of in-memory checkpoints this node copies."""
    rolled_back: tuple[int, ...] = ()
    """Steps to go on without; see `dtrain.record.history.rolled_back`."""
    device_wait_seconds: float = 0.0
    """Longest wait for the memory of the node's GPUs to be free again; 0: none are used."""


@dataclass(frozen=True)
class StopWorkers(Message):
    """Command: SIGTERM to every worker's process group, SIGKILL after the grace."""

    attempt: int
    grace_seconds: float


@dataclass(frozen=True)
class ProposeStop(Message):
    """Command to every worker: propose a step to leave at, and do not begin it without an answer."""

    attempt: int


@dataclass(frozen=True)
class LeaveAt(Message):
    """Command to every worker: leave before this step, as all ranks agreed."""

    attempt: int
    step: int


@dataclass(frozen=True)
class ProfileSteps(Message):
    """Command to every worker: some ranks profile the same steps."""

    attempt: int
    request: str
    step: int
    """The first one; a rank that is beyond it begins at once."""
    steps: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class DebugStop(Message):
    """Command to every worker: a rank stops for a debugger."""

    attempt: int
    rank: int | None
    """None: the first one that an exception ends; -1: none."""
    step: int | None
    """Stop at the user's first line of this step, or of the next one that begins; None: at no step."""
    on_exception: bool = False


@dataclass(frozen=True)
class DebuggerInput(Message):
    """Command to every worker: a line for the rank that is stopped in a debugger."""

    attempt: int
    rank: int
    text: str | None
    """None: the terminal is gone, and the rank continues."""


WorkerCommand = ProposeStop | LeaveAt | ProfileSteps | DebugStop | DebuggerInput
"""The agent passes these on to its workers."""


@dataclass(frozen=True)
class DumpStacks(Message):
    """Command: every worker writes the stacks of all its threads to its log."""

    attempt: int


@dataclass(frozen=True)
class Inspect(Message):
    """Command: look into the node's workers for a person; see `dtrain.record.inspection`."""

    attempt: int
    request: str
    ranks: tuple[int, ...] = ()
    """Empty: all."""
    stacks: bool = True
    native: bool = False
    collectives: bool = False
    """Whether programs are to write what their framework recorded of their collectives, too (`Strategy.gpu_environment`)."""


@dataclass(frozen=True)
class CheckNode(Message):
    """Command: look at the node before its first step; see `dtrain.agent.preflight`."""

    packages: tuple[str, ...]
    """Packages whose versions are reported."""
    folder: bool
    """Whether the run folder is to be written to."""
    gpus: bool = False
    """Whether the run uses GPUs, whose health is looked at."""


@dataclass(frozen=True)
class CheckPeers(Message):
    """Command: try to reach other nodes."""

    peers: dict[str, tuple[str, int]]
    """Node → address and port."""


@dataclass(frozen=True)
class Quit(Message):
    """Command: end the workers and the agent."""


@dataclass(frozen=True)
class AgentReady(Message):
    """Event: the agent is up."""

    host: str
    address: str
    cpus: int
    gpus: int
    pid: int
    sees_run: bool
    """Whether the run folder is there on this node."""
    format: int = FORMAT


IMAGE = "image"
"""Key of `NodeAnswered.versions` for the image of the container that the agent is in."""


@dataclass(frozen=True)
class NodeAnswered(Message):
    """Event: the answer to `CheckNode`."""

    clock: float
    """Seconds since 1970 on the node."""
    versions: dict[str, str]
    port: int
    """A port that other nodes may try to reach; 0: none."""
    disk_free: int | None
    """Bytes below the run folder."""
    shared_memory_free: int | None
    problem: str = ""
    """Why the run folder cannot be written to."""
    troubles: tuple[str, ...] = ()
    """What else a person should look at, in words."""


@dataclass(frozen=True)
class PeersChecked(Message):
    """Event: the answer to `CheckPeers`."""

    unreachable: dict[str, str]
    """Node → why."""


@dataclass(frozen=True)
class PortsReserved(Message):
    """Event: the ports reserved for an attempt."""

    attempt: int
    ports: tuple[int, ...]
    memory_port: int = 0
    """Where the agent gives in-memory checkpoints; 0: it does not."""


@dataclass(frozen=True)
class WorkerLiveness:
    """How alive a worker is."""

    step: int | None
    """Steps done, None if the worker has no steps (a script)."""
    idle_seconds: float
    """Seconds since the last step, output or CPU time."""
    stopped_seconds: float
    """Since it was stopped by a signal; 0: it is not."""
    quiet_seconds: float = 0.0
    """Seconds since the last step or output, whatever CPU time was used."""
    on_device: bool = False
    """Whether it uses a GPU: waiting for one takes CPU time."""

    def aged(self, seconds: float) -> WorkerLiveness:
        """Return the liveness to assume now, if the agent looked so many seconds ago."""
        if not seconds:
            return self
        stopped = self.stopped_seconds + seconds if self.stopped_seconds else 0.0
        return replace(
            self,
            idle_seconds=self.idle_seconds + seconds,
            quiet_seconds=self.quiet_seconds + seconds,
            stopped_seconds=stopped,
        )


@dataclass(frozen=True)
class Heartbeat(Message):
    """Event: the agent lives; with the liveness of its workers."""

    attempt: int
    signs: dict[str, WorkerLiveness] = field(default_factory=dict)
    age_seconds: float = 0.0
    """Seconds since the agent looked at its workers: a file system may hold up its loop."""
    usage: dict[str, float] = field(default_factory=dict)
    """How busy the node is, if that was measured anew: `cpu` and `gpuN` as shares of 1, `memory_bytes` and `gpuN_memory_bytes`."""


@dataclass(frozen=True)
class WorkerReport(Message):
    """Event: what a worker reported; see `dtrain.api.reports`."""

    attempt: int
    rank: int
    report: JsonObject
    """The report as the worker sent it; see `report_of`."""


@dataclass(frozen=True)
class WorkerExited(Message):
    """Event: a worker has exited."""

    attempt: int
    rank: int
    code: int
    """Exit code, or minus the signal."""
    step: int | None
    out_of_memory: bool
    """The kernel's OOM killer struck in the worker's control group meanwhile."""


@dataclass(frozen=True)
class Inspected(Message):
    """Event: what the workers of the node do, asked for by `Inspect`."""

    attempt: int
    request: str
    stacks: tuple[SharedStacks, ...] = ()
    usage: dict[str, WorkerUsage] = field(default_factory=dict)
    """Rank → what it uses."""


@dataclass(frozen=True)
class FileAppended(Message):
    """Event: bytes appended to a log, a ledger or a profile on a node that does not see the run folder."""

    name: str
    """Relative to the run folder."""
    offset: int
    """Offset of the data in the node's own file."""
    data: str
    """Base64."""


@dataclass(frozen=True)
class Fragment(Message):
    """Event: a fragment of another event's line, for transports that carry only short lines whole."""

    text: str
    first: bool
    last: bool


Command = (
    SetJob
    | ReservePorts
    | StartWorkers
    | WriteMemory
    | StopWorkers
    | WorkerCommand
    | DumpStacks
    | Inspect
    | CheckNode
    | CheckPeers
    | Quit
)
AgentEvent = (
    AgentReady
    | PortsReserved
    | MemoryHeld
    | MemoryWritten
    | WorkersStarted
    | Heartbeat
    | WorkerReport
    | WorkerExited
    | Inspected
    | NodeAnswered
    | PeersChecked
    | FileAppended
    | Fragment
)


def encode(message: Command | AgentEvent, to: str = "") -> bytes:
    """Encode as one JSON line; `to` names the node if one pipe reaches several."""
    body = tagged(message, TAG)
    return json.dumps(body | {"to": to} if to else body, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes | str) -> tuple[str, Any]:
    """The node a line names (or '') and its message; raises `OtherVersion` for what another version of dtrain wrote, `ValueError`
    for a line that is no message."""
    body = json.loads(line)
    if isinstance(body, dict) and "kind" in body and TAG not in body:
        raise OtherVersion("messages of format 1")
    return str(body.get("to", "")) if isinstance(body, dict) else "", untagged(body, TAG)


def report_of(report: JsonObject) -> Report:
    """Decode a worker's report; raises `ValueError` if it is none."""
    message = untagged(report, TAG)
    if not isinstance(message, Report):
        raise ValueError(f"{message.kind_name} is no report of a worker")  # noqa: TRY004
    return message


def fragments(line: bytes, to: str, most_bytes: int) -> Iterator[bytes]:
    """An encoded event as lines of at most `most_bytes` bytes."""
    if len(line) <= most_bytes:
        yield line
        return
    text = line.decode().rstrip("\n")
    # Quotes and backslashes become two bytes; the rest of JSON is ASCII.
    size = (most_bytes - len(encode(Fragment("", first=False, last=False), to))) // 2
    for begin in range(0, len(text), size):
        yield encode(Fragment(text[begin : begin + size], first=begin == 0, last=begin + size >= len(text)), to)
