"""The faults that `dtrain drill` injects into its own runs: what each does, where it can strike, and what is promised of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum

from dtrain.common.errors import UsageError, nearest
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.failure_kinds import FailureKind

STEP = "step"
PHASES = {
    "import": "before the user's code is imported",
    "rendezvous": "before the ranks connect",
    "build": "before the model is built and, after a restart, loaded",
    "first-step": "before the first step of its attempt",
    STEP: "before a step",
    "collective": "while the rank waits for the others in a step",
    "reduced": "between the sum of the gradients and the optimizer step, in a task under PyTorch",
    "evaluation": "before an evaluation",
    "staging": "before the state is copied to be written",
    "in-memory": "before the state is copied for an in-memory checkpoint",
    "memory": "where shared memory for the copy is taken",
    "writing": "while its part of a checkpoint is written",
    "commit": "between the last part of a checkpoint and its commit",
    "renamed": "in a commit, right after its rename",
}
"""Where a fault can strike, in the order of an attempt."""
BEFORE_STEPS = ("import", "rendezvous", "build")
IN_THE_LOOP = (*BEFORE_STEPS, "first-step", STEP, "reduced", "evaluation", "staging", "in-memory")
"""Phases in the thread that runs the user's code."""
ANYWHERE = tuple(phase for phase in PHASES if phase not in ("memory", "renamed"))


class Side(Enum):
    """The target of a fault."""

    PROCESS = "process"
    """A process: the worker's own or those above it; also from outside, after a time."""
    LOOP = "loop"
    """In the thread that runs the user's code."""
    NETWORK = "network"
    """The TCP connections of a rank, in the same thread."""
    DATA = "data"
    """Where samples are fetched."""
    CHECKPOINT = "checkpoint"
    """A checkpoint, or the writing of one."""
    SUPERVISOR = "supervisor"
    """The supervisor, struck by itself."""


@dataclass(frozen=True)
class FaultType:
    """One kind of fault, with what dtrain promises of it."""

    text: str
    side: Side
    phases: tuple[str, ...]
    """The first is the usual one."""
    classes: tuple[FailureKind, ...] = ()
    """The class that the failure is given, one of these; none: nothing fails."""
    finishes: bool = True
    """The run trains to its end, by itself or, if its supervisor ended, when it is resumed."""
    charged: int = 0
    """Restarts that it costs of `recovery.restarts`."""
    hangs: bool = False
    """Found after `recovery.hang_seconds`."""


_PROCESS = (STEP, *(phase for phase in ANYWHERE if phase != STEP))
_LOOP = (STEP, *(phase for phase in IN_THE_LOOP if phase != STEP))
_KIND = FailureKind

TYPES = {
    "kill": FaultType("SIGKILL to a rank", Side.PROCESS, _PROCESS, (_KIND.KILLED,), charged=1),
    "exit": FaultType("a rank calls os._exit(3)", Side.PROCESS, _PROCESS, (_KIND.BUG,), finishes=False),
    "raise": FaultType("a RuntimeError in a rank", Side.LOOP, _LOOP, (_KIND.BUG,), finishes=False),
    "raise-once": FaultType("a ConnectionResetError in a rank, once", Side.LOOP, _LOOP, (_KIND.TRANSIENT,), charged=1),
    "segv": FaultType("a rank reads address 0", Side.PROCESS, _PROCESS, (_KIND.CRASH,), charged=1),
    "stop": FaultType("SIGSTOP to a rank", Side.PROCESS, _PROCESS, (_KIND.HANG,), charged=1, hangs=True),
    "hang": FaultType("a rank sleeps for ever", Side.LOOP, _LOOP, (_KIND.HANG,), charged=1, hangs=True),
    "spin": FaultType("a rank computes for ever", Side.LOOP, (STEP, "first-step"), (_KIND.HANG,), charged=1, hangs=True),
    "nan": FaultType("a batch of NaN on a rank", Side.DATA, (STEP,), (_KIND.BUG,), finishes=False),
    "data-raise": FaultType("a ValueError where a rank fetches a sample", Side.DATA, (STEP,), (_KIND.BUG,), finishes=False),
    "data-hang": FaultType("fetching a batch never ends, once", Side.DATA, (STEP,), (_KIND.HANG,), charged=1, hangs=True),
    "slow": FaultType("a rank takes 0.2 s longer for each step from here on", Side.LOOP, (STEP,)),
    "network-cut": FaultType(
        "a rank's TCP connections are shut down, once", Side.NETWORK, (STEP, "first-step", "collective"), (_KIND.CASCADE,), charged=1
    ),
    "network-delay": FaultType("a rank's TCP connections send 4 MB a second at most from here on", Side.NETWORK, (STEP, "first-step")),
    "agent": FaultType("SIGKILL to the agent of a node", Side.PROCESS, _PROCESS, (_KIND.NODE_LOST,)),
    "zygote": FaultType("SIGKILL to the zygote of a node", Side.PROCESS, _PROCESS, (_KIND.CRASH, _KIND.KILLED), charged=1),
    "node": FaultType("SIGKILL to the agent, its template and zygote, and all workers of a node", Side.PROCESS, _PROCESS, (_KIND.NODE_LOST,)),
    "supervisor": FaultType("SIGKILL to the supervisor; the run is resumed", Side.SUPERVISOR, ("commit", "renamed")),
    "preempt": FaultType("SIGTERM to the supervisor, as for a preemption; the run is resumed", Side.SUPERVISOR, ("commit",)),
    "time-limit": FaultType("SIGUSR1 to the supervisor, as before a time limit; the run is resumed", Side.SUPERVISOR, ("commit",)),
    "drain": FaultType("the cluster says that a node is about to be taken away", Side.SUPERVISOR, ("commit",)),
    "corrupt-checkpoint": FaultType(
        "one bit of the newest checkpoint is flipped, then SIGKILL to a rank", Side.CHECKPOINT, (STEP,), (_KIND.KILLED,), charged=1
    ),
    "truncate-manifest": FaultType(
        "the newest manifest is cut in half, then SIGKILL to a rank", Side.CHECKPOINT, (STEP,), (_KIND.KILLED,), charged=1
    ),
    "disk-full": FaultType("ENOSPC, raised where a rank writes a checkpoint", Side.CHECKPOINT, ("writing",)),
    "shm-full": FaultType("ENOSPC, raised where a rank copies its state into shared memory", Side.CHECKPOINT, ("memory",)),
    "storage-stall": FaultType("writing a checkpoint takes 5 s longer on a rank", Side.CHECKPOINT, ("writing",)),
    "oom": FaultType("a MemoryError in a rank", Side.LOOP, _LOOP, (_KIND.OUT_OF_MEMORY,), finishes=False),
}  # fmt: skip
"""In the order in which they are drilled."""
_TEXT = re.compile(r"^(?P<name>[a-z-]+)(@(?P<where>[a-z0-9.-]+))?(:(?P<rank>\d+))?$")
_SECONDS = re.compile(r"^\d+(\.\d+)?s$")


@dataclass(frozen=True)
class Fault:
    """One fault of a run. The first one strikes in its first attempt, the second in the second one …"""

    name: str
    rank: int = 0
    phase: str = STEP
    step: int = 0
    """Not before this step, counted from 0."""
    seconds: float | None = None
    """Seconds after the worker's start, in a program whose steps dtrain does not see; then there is no phase."""

    @property
    def type(self) -> FaultType:
        """Return the kind of the fault."""
        return TYPES[self.name]

    @property
    def where(self) -> str:
        """As it is typed after the `@`."""
        if self.seconds is not None:
            return f"{self.seconds:g}s"
        return str(self.step) if self.phase == STEP else f"{self.phase}-{self.step}" if self.step else self.phase

    @property
    def text(self) -> str:
        """As it is typed: `kill@23:1`, `kill@evaluation:0`."""
        of = "" if self.type.side is Side.SUPERVISOR else f":{self.rank}"
        return f"{self.name}@{self.where}{of}"


Schedule = tuple[Fault, ...]
"""The faults of one run, one attempt each."""


@dataclass(frozen=True)
class Wanted:
    """A fault as it was typed; what is None is left to the drill."""

    name: str
    phase: str | None = None
    step: int | None = None
    rank: int | None = None
    seconds: float | None = None


def parsed(text: str) -> tuple[Wanted, ...]:
    """The faults of `kill@23:1+hang@evaluation`, which follow each other in one run; raises `UsageError`."""
    return tuple(_parsed(one) for one in text.split("+"))


def _parsed(text: str) -> Wanted:
    match = _TEXT.match(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is no fault", "Write NAME, NAME@STEP, NAME@PHASE or NAME@PHASE:RANK, as kill@23:1.")
    name, where = match["name"], match["where"]
    if name not in TYPES:
        raise UsageError(f"there is no fault '{name}'. {nearest(name, list(TYPES))}")
    rank = int(match["rank"]) if match["rank"] else None
    if where is None:
        return Wanted(name, rank=rank)
    if where.isdigit():
        return Wanted(name, TYPES[name].phases[0], int(where), rank)
    if _SECONDS.match(where):
        return Wanted(name, rank=rank, seconds=float(where[:-1]))
    phase, _, number = where.rpartition("-") if where.rpartition("-")[2].isdigit() else (where, "", "")
    allowed = [one for one in TYPES[name].phases if one != STEP]
    if phase not in allowed:
        places = (
            f"at a step{', or at ' if allowed else ''}{', '.join(allowed)}"
            if STEP in TYPES[name].phases
            else f"at {', '.join(allowed)}"
        )
        raise UsageError(f"{name} cannot strike at '{where}'", f"It strikes {places}.")
    return Wanted(name, phase, int(number) if number else None, rank)


def encode(schedule: Sequence[Fault]) -> str:
    """For the environment of a drill's run."""
    return json.dumps([asdict(fault) for fault in schedule])


def decode(text: str) -> Schedule:
    """Decode the output of `encode`; '' is a run without faults."""
    return tuple(Fault(**fields) for fields in json.loads(text)) if text else ()


def named(schedule: Sequence[Fault]) -> str:
    """Parse one fault as it is typed."""
    return "+".join(fault.text for fault in schedule)
