"""Inspecting the workers of a running run: the request, a file in the run folder, and the answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path

from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import from_dict, to_dict
from dtrain.record.debug_session import DebugRequest

THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):")
"""Begins the stack of a thread as faulthandler writes it."""
FRAME = re.compile(r"  (File \".*\", line \d+ in .*|<no Python frame>|\.\.\.)")
THREAD_HEAD = "thread:"
"""Begins the stack of a thread in a text of stacks; addresses differ from rank to rank and are left out."""

NOTE = "note: "
"""Begins a line of such a text that is no frame."""


@dataclass(frozen=True)
class InspectionRequest:
    """A request for the stacks, the resource usage or a profile of the workers, or to debug one."""

    id: str
    ranks: tuple[int, ...] = ()
    """Ranks to look at; empty: all."""
    stacks: bool = True
    """Whether the stacks of their threads are wanted; if not, only their resource usage."""
    native: bool = False
    """Whether frames of C and C++ are wanted, too (by py-spy)."""
    profile_steps: int = 0
    """Number of steps of these ranks to profile; if it is not 0, nothing else is wanted."""
    debug: DebugRequest | None = None
    """If given, the request is for a debugger alone."""


@dataclass(frozen=True)
class WorkerUsage:
    """A worker process at one moment."""

    node: str
    pid: int
    step: int | None
    """Steps done; None if it has none."""
    cpu_seconds: float
    """CPU time of the process and its children since they were started."""
    memory_megabytes: float
    stopped: bool = False
    gpu: float | None = None
    """How busy its GPU is, 0 to 1; None: not known."""
    gpu_memory_megabytes: float | None = None
    """Memory in use on that GPU."""
    step_seconds: float | None = None
    """Mean time of the last steps; None: not known yet."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of the step's phases, by the names of `dtrain.api.phases`; those that the strategy cannot measure are
    left out."""


@dataclass(frozen=True)
class SharedStacks:
    """The stacks of all threads, equal in some ranks."""

    ranks: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Inspection:
    """The answer to a request."""

    request: str
    time: float
    attempt: int
    stacks: tuple[SharedStacks, ...] = ()
    usage: dict[str, WorkerUsage] = field(default_factory=dict)
    """Rank → its resource usage."""
    silent: tuple[str, ...] = ()
    """Nodes that did not answer in time."""
    problem: str = ""
    """Why there is nothing to see."""


def request_text(request: InspectionRequest) -> str:
    """As it is left in the run folder."""
    return json.dumps(to_dict(request))


def parsed_request(text: str) -> InspectionRequest | None:
    """None for one that cannot be read: of another version, or damaged."""
    try:
        return from_dict(InspectionRequest, json.loads(text))
    except (ValueError, TypeError):
        return None


def parsed_answer(line: str | bytes) -> Inspection | None:
    """The answer in a line; None if the line is not an answer."""
    try:
        return from_dict(Inspection, json.loads(line))
    except (ValueError, TypeError):
        return None


def answers(path: Path, offset: int) -> list[Inspection]:
    """The answers in a file from an offset on; one that is not whole yet does not count."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [answer for line in lines if (answer := parsed_answer(line))]


def shared(texts: Iterable[tuple[Sequence[int], str]]) -> tuple[SharedStacks, ...]:
    """Equal texts together with all of their ranks, those of most ranks first."""
    found: dict[str, set[int]] = {}
    for ranks, text in texts:
        found.setdefault(text, set()).update(ranks)
    groups = [SharedStacks(tuple(sorted(ranks)), text) for text, ranks in found.items()]
    return tuple(sorted(groups, key=lambda group: (-len(group.ranks), group.ranks)))


def stacks_in(output: str) -> tuple[str, bool]:
    """The stacks that faulthandler wrote among other output, without addresses; and whether there was other output."""
    lines, other, inside = [], False, False
    for line in output.splitlines():
        if THREAD.fullmatch(line):
            lines.append(THREAD_HEAD)
            inside = True
        elif inside and FRAME.fullmatch(line):
            lines.append(line)
        else:
            other |= bool(line.strip())
            inside = inside and not line.strip()
    return "\n".join(lines), other


@dataclass(frozen=True)
class ThreadStack:
    """The stack of one thread, equal in some ranks."""

    ranks: tuple[int, ...]
    main: bool
    frames: tuple[str, ...]
    """The most recent call first."""


def notes(stacks: Sequence[SharedStacks]) -> list[str]:
    """The notes among the stacks, each once."""
    lines = (line for group in stacks for line in group.text.splitlines() if line.startswith(NOTE))
    return sorted({line.removeprefix(NOTE) for line in lines})


def by_thread(stacks: Sequence[SharedStacks]) -> list[ThreadStack]:
    """Equal stacks of threads together, whatever else their processes do: main threads first, those of most ranks first."""
    found: dict[tuple[str, ...], set[int]] = {}
    for group in stacks:
        text = "\n".join(line for line in group.text.splitlines() if not line.startswith(NOTE))
        for thread in _threads(text):
            found.setdefault(thread, set()).update(group.ranks)
    threads = [ThreadStack(tuple(sorted(ranks)), _is_main(frames), frames) for frames, ranks in found.items()]
    return sorted(threads, key=lambda thread: (not thread.main, -len(thread.ranks), thread.ranks))


def _threads(text: str) -> list[tuple[str, ...]]:
    if not text.startswith(THREAD_HEAD):
        return [tuple(text.splitlines())]
    parts = text.split(f"{THREAD_HEAD}\n" if f"{THREAD_HEAD}\n" in text else THREAD_HEAD)
    return [tuple(line.strip() for line in part.strip("\n").splitlines()) for part in parts if part.strip()]


def _is_main(frames: tuple[str, ...]) -> bool:
    """Every other thread of Python was begun by the module `threading`."""
    return not any("threading.py" in frame and "_bootstrap" in frame for frame in frames)
