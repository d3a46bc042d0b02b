"""Reads from the stacks of a hang which ranks wait for the others, and which do not join them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dtrain.api.protocol import Inspected
from dtrain.api.strategy import RecordedHang, Strategy
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.ranks import ranks
from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.job.job import Job
from dtrain.record import collective_records, inspection
from dtrain.record.folder import RunDir
from dtrain.record.inspection import SharedStacks
from dtrain.worker.users_code import UsersCode

FRAME = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
INNERMOST = 6
"""Frames in which a collective is looked for: below it there are only wrappers."""
MOST_GROUPS = 6
"""Things that ranks do, which are told one by one."""


@dataclass(frozen=True)
class Known:
    """The meaning of frames."""

    waits_in: Callable[[str, str], str]
    """Names the collective of a file and a function; see `Strategy.waits_in`."""
    is_users: Callable[[str], bool]
    """Whether a file is the user's own."""
    recorded: Callable[[], RecordedHang | None] = lambda: None
    """Reads what the programs recorded of their collectives."""


def known_of(strategy: Strategy, job: Job, run: Path | None = None, attempt: int = 0) -> Known:
    """Return the known frames of a job under its strategy, and the records of an attempt in the run folder."""

    def recorded() -> RecordedHang | None:
        records = collective_records.read(RunDir(run), attempt) if run else {}
        return strategy.explain_hang(records) if records else None

    return Known(strategy.waits_in, UsersCode(job).__contains__, recorded)


class HangStacks:
    """The answers of these nodes' agents to one request; without a request, there is no hang."""

    def __init__(self, request: str = "", nodes: Iterable[str] = ()) -> None:
        self._request = request
        self._waiting = set(nodes)
        self._stacks: list[SharedStacks] = []

    def add(self, node: str, answer: Inspected) -> bool:
        """The stacks of one node; whether all are there now."""
        if answer.request != self._request:
            return False
        self._stacks += answer.stacks
        self._waiting.discard(node)
        return not self._waiting

    def explain(self, failure: Failure, known: Known, owner: Mapping[int, str]) -> Failure:
        """A hang with what its ranks do; if some wait for the others, the first of the others is to blame, on the node
        that `owner` names."""
        told, outside = activities(self._stacks, known)
        if not told or failure.kind is not FailureKind.HANG:
            return failure
        if recorded := known.recorded():  # of what GPUs wait for, stacks tell little
            told, outside = f"{recorded.text}. By their stacks, {told}", set(recorded.ranks) or outside
        rank = min(outside) if outside else failure.rank
        return dataclasses.replace(
            failure,
            message=f"{failure.message}: {told} (all stacks are in the logs)",
            rank=rank,
            node=owner.get(rank, failure.node) if rank is not None else failure.node,
        )


def activities(stacks: Sequence[SharedStacks], known: Known) -> tuple[str, set[int]]:
    """Pure. What the main threads do, equal ones once, in words; and the ranks that do not join the collective that others wait in."""
    waiting: dict[str, set[int]] = {}
    working: dict[str, set[int]] = {}
    for thread in inspection.by_thread(stacks):
        if thread.main:
            what, waits = _activity(thread.frames, known)
            (waiting if waits else working).setdefault(what, set()).update(thread.ranks)
    outside = set().union(*working.values()) if waiting else set()
    parts = [_told(numbers, f"wait{'s' if len(numbers) == 1 else ''} in {what}") for what, numbers in waiting.items()]
    absent = " and did not join" if waiting else ""
    parts += [
        _told(numbers, f"{'is' if len(numbers) == 1 else 'are'} {what}{absent}")
        for what, numbers in sorted(working.items(), key=lambda group: len(group[1]))
    ]
    more = [f"and {len(parts) - MOST_GROUPS} more"] if len(parts) > MOST_GROUPS else []
    return "; ".join([*parts[:MOST_GROUPS], *more]), outside


def _told(numbers: set[int], what: str) -> str:
    return f"{ranks(sorted(numbers))} {what}"


def _activity(frames: Sequence[str], known: Known) -> tuple[str, bool]:
    """Return what a thread does, and whether it waits for other ranks there."""
    parsed = [found for frame in frames if (found := FRAME.search(frame))]
    if not parsed:  # no Python: what the kernel tells of its innermost process, or why nothing is known
        last = frames[-1].strip() if frames else "doing what is not known"
        program, colon, state = last.partition(": ")
        return (f"in {program} ({state})" if colon else last.removeprefix("is ")), False
    for frame in parsed[:INNERMOST]:
        if what := known.waits_in(frame["file"], frame["function"]):
            return what, True
    own = next((frame for frame in parsed if known.is_users(frame["file"])), parsed[0])
    return f"in {own['function']} ({Path(own['file']).name}:{own['line']})", False
