"""The messages between supervisor and agents: frozen values, one JSON line each.

Commands go down an agent's stdin, events come up its stdout. A command about an attempt names it, and so does every event
about one, so that a late message of an older attempt is recognised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

from dtrain.api.memory_protocol import MemoryCheckpoint, MemoryHeld, MemoryPeer, MemoryWritten, WriteMemory
from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.common.serde import JsonObject, from_dict, to_dict
from dtrain.record.inspection import SharedStacks, WorkerUsage


@dataclass(frozen=True)
class SetJob:
    """Command: work without the run folder, which this node does not see, on this job."""

    job: JsonObject


@dataclass(frozen=True)
class ReservePorts:
    """Command: reserve this number of ports for an attempt."""

    attempt: int
    workers: int
    memory_key: str = ""
    """If not empty, give in-memory checkpoints to agents that know this key."""


@dataclass(frozen=True)
class StartWorkers:
    """Command: fork the node's workers."""

    attempt: int
    ranks: tuple[RankInfo, ...]
    rendezvous: RendezvousInfo
    checkpoint: str | None
    """Name of the one to resume from."""
    step: int
    """Steps that are done in it."""
    keep_log_bytes: int = 0
    """Of each worker's log; 0: everything."""
    memory: MemoryCheckpoint | None = None
    """To resume from instead."""
    partner: MemoryPeer | None = None
    """Whose parts of the in-memory checkpoints this node keeps copies of."""
    rolled_back: tuple[int, ...] = ()
    """Steps to go on without; see `dtrain.record.history.rolled_back`."""


@dataclass(frozen=True)
class StopWorkers:
    """Command: SIGTERM to every worker's process group, SIGKILL after the grace."""

    attempt: int
    grace_seconds: float


@dataclass(frozen=True)
class ProfileWindow:
    """The steps that some ranks are to profile."""

    request: str
    step: int
    """The first one; whoever is beyond it begins at once."""
    steps: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class DebugStop:
    """Where a rank is to stop for a debugger."""

    rank: int | None
    """None: the first one that an exception ends."""
    step: int | None
    """At the user's first line of this step, or of the next one that it begins; None: no step."""
    on_exception: bool = False


@dataclass(frozen=True)
class DebuggerInput:
    """What was typed for a rank that is stopped in a debugger."""

    rank: int
    text: str | None
    """None: nobody types any more, and the rank is to go on."""


@dataclass(frozen=True)
class WorkerCommand:
    """Command: pass one of these on to every worker of the node: the drain's agreement (if the others are not given), a
    request for a profile, or what is for a debugger; see `dtrain.worker.control_channel`."""

    attempt: int
    leave_at: int | None = None
    """The agreed step; None: each rank is to propose one."""
    profile: ProfileWindow | None = None
    debug: DebugStop | None = None
    typed: DebuggerInput | None = None

    @property
    def order(self) -> int | ProfileWindow | DebugStop | DebuggerInput | None:
        """What a worker is told."""
        return self.typed or self.debug or self.profile or self.leave_at


@dataclass(frozen=True)
class DumpStacks:
    """Command: every worker writes the stacks of all its threads to its log."""

    attempt: int


@dataclass(frozen=True)
class Inspect:
    """Command: look into the node's workers for a person; see `dtrain.record.inspection`."""

    attempt: int
    request: str
    ranks: tuple[int, ...] = ()
    """Empty: all."""
    stacks: bool = True
    native: bool = False


@dataclass(frozen=True)
class CheckNode:
    """Command: look at the node before its first step; see `dtrain.agent.preflight`."""

    packages: tuple[str, ...]
    """Whose versions are to be told."""
    folder: bool
    """Whether the run folder is to be written to."""


@dataclass(frozen=True)
class CheckPeers:
    """Command: try to reach other nodes."""

    peers: dict[str, tuple[str, int]]
    """Node → address and port."""


@dataclass(frozen=True)
class Quit:
    """Command: end the workers and the agent."""


@dataclass(frozen=True)
class AgentReady:
    """Event: the agent is up."""

    host: str
    address: str
    cpus: int
    gpus: int
    pid: int
    sees_run: bool
    """Whether the run folder is there on this node."""


@dataclass(frozen=True)
class NodeChecked:
    """Event: the answer to `CheckNode`."""

    clock: float
    """Seconds since 1970 on the node."""
    versions: dict[str, str]
    port: int
    """That other nodes may try to reach; 0: none."""
    disk_free: int | None
    """Bytes below the run folder."""
    shared_memory_free: int | None
    problem: str = ""
    """Why the run folder cannot be written to."""


@dataclass(frozen=True)
class PeersChecked:
    """Event: the answer to `CheckPeers`."""

    unreachable: dict[str, str]
    """Node → why."""


@dataclass(frozen=True)
class PortsReserved:
    """Event: the ports reserved for an attempt."""

    attempt: int
    ports: tuple[int, ...]
    memory_port: int = 0
    """Where the agent gives in-memory checkpoints; 0: it does not."""


@dataclass(frozen=True)
class WorkersStarted:
    """Event: the workers run."""

    attempt: int
    pids: dict[str, int]


@dataclass(frozen=True)
class WorkerLiveness:
    """How alive a worker is."""

    step: int | None
    """Steps done, None if the worker has no steps (a script)."""
    idle_seconds: float
    """Since it last made a step, wrote output or used CPU time."""
    stopped_seconds: float
    """Since it was stopped by a signal; 0: it is not."""
    quiet_seconds: float = 0.0
    """Since it last made a step or wrote output, whatever CPU time it used."""


@dataclass(frozen=True)
class Heartbeat:
    """Event: the agent lives; with the liveness of its workers."""

    attempt: int
    signs: dict[str, WorkerLiveness] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=dict)
    """How busy the node is, if that was measured anew: `cpu` and `gpuN` as shares of 1, `memory_bytes` and `gpuN_memory_bytes`."""


@dataclass(frozen=True)
class WorkerReport:
    """Event: what a worker reported; see `dtrain.api.reports`."""

    attempt: int
    rank: int
    body: JsonObject


@dataclass(frozen=True)
class WorkerExited:
    """Event: a worker exited."""

    attempt: int
    rank: int
    code: int
    """Exit code, or minus the signal."""
    step: int | None
    out_of_memory: bool
    """The kernel's OOM killer struck in the worker's control group meanwhile."""


@dataclass(frozen=True)
class Inspected:
    """Event: what the workers of the node do, asked for by `Inspect`."""

    attempt: int
    request: str
    stacks: tuple[SharedStacks, ...] = ()
    usage: dict[str, WorkerUsage] = field(default_factory=dict)
    """Rank → what it uses."""


@dataclass(frozen=True)
class FileAppended:
    """Event: bytes appended to a log, a ledger or a profile on a node that does not see the run folder."""

    name: str
    """Relative to the run folder."""
    offset: int
    """Of the data in the node's own file."""
    data: str
    """Base64."""


@dataclass(frozen=True)
class Fragment:
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
Event = (
    AgentReady
    | PortsReserved
    | MemoryHeld
    | MemoryWritten
    | WorkersStarted
    | Heartbeat
    | WorkerReport
    | WorkerExited
    | Inspected
    | NodeChecked
    | PeersChecked
    | FileAppended
    | Fragment
)
KINDS = {cls.__name__: cls for cls in (*get_args(Command), *get_args(Event))}


def encode(message: Command | Event, to: str = "") -> bytes:
    """One JSON line; `to` names the node if one pipe reaches several."""
    body = to_dict(message) | {"kind": type(message).__name__}
    return json.dumps(body | {"to": to} if to else body, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes | str) -> tuple[str, Any]:
    """The node a line names (or '') and its message; raises `ValueError` for a line that is none of ours."""
    body = json.loads(line)
    if not isinstance(body, dict) or body.get("kind") not in KINDS:
        raise ValueError("not a message")
    to = str(body.pop("to", ""))
    return to, from_dict(KINDS[body.pop("kind")], body)


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


class Reassembler:
    """Puts the fragments of several nodes together."""

    def __init__(self) -> None:
        self._begun: dict[str, list[str]] = {}

    def add(self, node: str, fragment: Fragment) -> Event | None:
        """The event that is complete with this fragment, or None."""
        if fragment.first:
            self._begun[node] = []
        self._begun.setdefault(node, []).append(fragment.text)
        if not fragment.last:
            return None
        event: Event = decode("".join(self._begun.pop(node)))[1]
        return event
