"""Requests to look into the workers: passes them to the agents, puts their answers together, and writes them into the run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import field, replace

from dtrain.api.protocol import Inspected
from dtrain.api.reports import RankTimes
from dtrain.common.files import PRIVATE_FILE, write_whole
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import to_dict
from dtrain.record import inspection
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir
from dtrain.record.inspection import Inspection, InspectionRequest, WorkerUsage
from dtrain.supervisor.attempt import Attempt
from dtrain.supervisor.beside.background import Lane, TaskDone
from dtrain.supervisor.beside.debugging import Debugging, Typed

PATIENCE_SECONDS = 8.0
"""Longest wait for the answer of a node."""
InspectionItem = InspectionRequest | Inspected | Typed
"""Items of the inbox that concern inspections."""


@dataclass
class _Open:
    """An open request."""

    request: InspectionRequest
    attempt: int
    waiting: set[str]
    """Nodes that have not answered."""
    deadline: float
    times: Mapping[int, RankTimes]
    """Rank → what its steps took, as it reported last."""
    answers: list[Inspected] = field(default_factory=list)


class Inspections:
    """The requests of one run; no part of the supervision depends on them."""

    def __init__(self, run: RunDir, log: EventLog, put: Callable[[TaskDone | Typed], None]) -> None:
        self.debugging = Debugging(run, log, put)
        self._run = run
        self._lane = Lane("inspections", put)
        self._open: dict[str, _Open] = {}

    def handle(self, node: str, item: InspectionItem, attempt: Attempt | None) -> None:
        """A person's request, or the answer of a node."""
        if isinstance(item, InspectionRequest):
            self._ask(item, attempt)
        elif isinstance(item, Typed):
            self.debugging.typed(item)
        elif found := self._open.get(item.request):
            found.answers.append(item)
            found.waiting.discard(node)
            if not found.waiting:
                self._answer(found)
        elif attempt:
            attempt.inspected(node, item)

    def tick(self) -> None:
        """Time has passed: answer what has waited for long with what there is."""
        self.debugging.tick()
        now = time.monotonic()
        for found in [one for one in self._open.values() if now >= one.deadline]:
            self._answer(found)

    def _ask(self, request: InspectionRequest, attempt: Attempt | None) -> None:
        if request.id in self._open:
            return
        if request.debug:
            self.debugging.ask(request.id, request.debug, attempt)
            return
        if request.profile_steps:  # the answers are events
            if attempt:
                attempt.profile(request)
            return
        nodes = attempt.inspect(request) if attempt else set()
        number = attempt.number if attempt else 0
        times = attempt.stragglers.newest if attempt else {}
        found = _Open(request, number, nodes, time.monotonic() + PATIENCE_SECONDS, times)
        if nodes:
            self._open[request.id] = found
        else:
            self._answer(found, "no such rank runs now" if attempt and request.ranks else "no worker runs now")

    def _answer(self, found: _Open, problem: str = "") -> None:
        self._open.pop(found.request.id, None)
        stacks = inspection.shared((group.ranks, group.text) for answer in found.answers for group in answer.stacks)
        usage = {
            rank: _with_times(used, found.times.get(int(rank)))
            for answer in found.answers for rank, used in answer.usage.items()
        }  # fmt: skip
        answer = Inspection(
            found.request.id, round(time.time(), 3), found.attempt, stacks, usage, tuple(sorted(found.waiting)), problem
        )
        line = json.dumps(to_dict(answer), separators=(",", ":")) + "\n"
        self._lane.run(lambda: self._write(line, stacks=found.request.stacks), lambda _: None)

    def _write(self, line: str, *, stacks: bool) -> None:
        """Write the answer in a lane: the run folder may be slow. If it is full, the person who asked learns that no
        answer comes."""
        if not stacks:
            write_whole(self._run.usage, line, PRIVATE_FILE)
            return
        with open(self._run.inspections, "a") as file:
            file.write(line)


def _with_times(used: WorkerUsage, times: RankTimes | None) -> WorkerUsage:
    if times is None:
        return used
    return replace(used, step_seconds=times.step_seconds, phases=times.phases)
