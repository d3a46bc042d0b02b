"""Checks the history of a drill's run against dtrain's promises, from what the run left: events, ledgers and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from dtrain.checkpoint.factory import store_of
from dtrain.checkpoint.store import MANIFEST, CheckpointInfo, parsed, verify
from dtrain.common.errors import DtrainError, Exit
from dtrain.common.files import hashed
from dtrain.common.lazy_dataclass import dataclass
from dtrain.drill import injection
from dtrain.drill.fault import Schedule, Side
from dtrain.job.failure_kinds import FailureKind
from dtrain.record import event_log, goodput
from dtrain.record.events import (
    AttemptStarted,
    CheckpointFailed,
    CheckpointQuarantined,
    CheckpointSaved,
    DecisionMade,
    Event,
    FailureOccurred,
    HangDetected,
    Metrics,
    NodeLost,
    Requeued,
    ResizeRequested,
    RunStarted,
    StopRequested,
    WorkersStarted,
)
from dtrain.record.folder import RunDir
from dtrain.record.sample_ledger import LedgerFile
from dtrain.report.audit import audit

NOT_CHARGED = (FailureKind.NODE_LOST.value, FailureKind.PREEMPTED.value)
SIGNS = (FailureOccurred, HangDetected, NodeLost, StopRequested, ResizeRequested, CheckpointFailed)
"""Events that show that something was noticed."""
ALARMS = (FailureOccurred, HangDetected, NodeLost, CheckpointFailed, CheckpointQuarantined)
"""None of these belongs into an undisturbed run."""


@dataclass(frozen=True)
class Injected:
    """A fault that struck."""

    attempt: int
    time: float
    problem: str = ""


@dataclass(frozen=True)
class History:
    """A run that has ended, and how."""

    run: RunDir
    schedule: Schedule
    codes: tuple[int, ...]
    """Exit codes of its supervisors, in order; more than one if it was resumed."""
    seconds: float
    overdue: str = ""
    """Why it was ended from outside."""
    leftovers: tuple[str, ...] = ()

    @cached_property
    def events(self) -> Sequence[Event]:
        """All events of the run."""
        return event_log.read(self.run.events)

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @cached_property
    def injected(self) -> Sequence[Injected]:
        """The faults that struck."""
        try:
            lines = injection.log_of(self.run).read_text().splitlines()
        except OSError:
            return []
        facts = {one["attempt"]: one for one in map(json.loads, lines)}  # the last word of each
        return [Injected(one["attempt"], one["time"], one.get("problem", "")) for one in facts.values()]

    @cached_property
    def failures(self) -> Sequence[FailureOccurred]:
        """Failures in the order of time."""
        return self.of(FailureOccurred)

    @property
    def saved_step(self) -> int:
        """Step of the newest committed checkpoint."""
        return max((event.step for event in self.of(CheckpointSaved)), default=0)

    @property
    def is_script(self) -> bool:
        """Whether dtrain sees no steps."""
        return self.run.job().kind == "script"

    @property
    def workers_seconds(self) -> float:
        """From the start of the workers to the end."""
        started = [event.time for event in self.of(WorkersStarted)]
        return self.events[-1].time - started[-1] if started else self.seconds

    def losses(self) -> dict[int, float]:
        """Step → loss of the last attempt that did it."""
        return {event.step: event.values["loss"] for event in self.of(Metrics) if "loss" in event.values}

    @cached_property
    def charged(self) -> int:
        """Restarts that count against `recovery.restarts`."""
        pairs = zip(self.failures, self.of(DecisionMade), strict=False)
        return sum(decision.retry and failure.kind not in NOT_CHARGED for failure, decision in pairs)

    @cached_property
    def detected_seconds(self) -> float | None:
        """Seconds from the last fault to the first sign of it."""
        if not self.injected:
            return None
        at = self.injected[-1].time
        seen = [event.time for event in self.events if isinstance(event, SIGNS) and event.time >= at - 0.001]
        return max(0.0, min(seen) - at) if seen else None

    @cached_property
    def next_step_seconds(self) -> float | None:
        """Seconds from the last fault to the first step, or the start of the workers of a script, of the attempt
        after it."""
        if not self.injected:
            return None
        last = self.injected[-1]
        for started in self.of(AttemptStarted):
            if started.attempt <= last.attempt or started.time < last.time:
                continue
            first = LedgerFile(self.run.ledger(started.attempt, 0)).at(0)
            if first is not None:
                return max(0.0, first.time - last.time)
            if self.is_script:
                begun = [event.time for event in self.of(WorkersStarted) if event.attempt == started.attempt]
                return max(begun) - last.time if begun else None
        return None

    @cached_property
    def steps_lost(self) -> int | None:
        """Steps that an attempt had done and the next one began before."""
        if self.is_script:
            return None
        lost = 0
        for before, after in pairwise(self.of(AttemptStarted)):
            last = LedgerFile(self.run.ledger(before.attempt, 0)).at(-1)
            lost += max(0, last.step + 1 - after.step) if last else 0
        return lost

    @cached_property
    def seconds_lost(self) -> float | None:
        """Seconds that failures cost; for a run that was resumed, and for a script, up to the next step or start."""
        if self.is_script:
            return self.next_step_seconds
        found = goodput.builder(self.run)
        for event in self.events:
            found.add(event)
        costs = [cost.seconds for cost in found.timeline().failures]
        return sum(costs) if costs and self.next_step_seconds is not None else self.next_step_seconds


def too_late(history: History) -> str:
    """Why a fault that asks the run to leave shows nothing; '' if it shows something."""
    asks = [fault for fault in history.schedule if fault.type.side is Side.SUPERVISOR]
    if asks and history.codes == (Exit.DONE,) and len(history.of(AttemptStarted)) <= len(history.schedule):
        return f"the run was done before it could leave after {asks[-1].text}: use more --steps"
    return ""


def alarms(history: History) -> list[str]:
    """Find events that an undisturbed run should not have."""
    if failed := list(_ended(history, finishes=True)):
        return failed
    found = [
        f"a false alarm: {event.kind_name} {_of_alarm(event)}" for event in history.events if isinstance(event, ALARMS)
    ]
    return [*found, *always(history)]


def _of_alarm(event: Event) -> str:
    return str(getattr(event, "message", "") or getattr(event, "error", "") or getattr(event, "reason", ""))


def broken(history: History) -> list[str]:
    """Every promise that a run with faults broke, weights apart."""
    finishes = all(fault.type.finishes for fault in history.schedule)
    return [*_ended(history, finishes=finishes), *_classified(history), *always(history)]


def not_struck(history: History) -> list[str]:
    """Find what broke in a run whose faults did not all strike: it must have ended by those that did, or well."""
    struck = {one.attempt for one in history.injected if not one.problem}
    faults = [fault for number, fault in enumerate(history.schedule) if number + 1 in struck]
    return [*_ended(history, finishes=all(fault.type.finishes for fault in faults)), *always(history)]


def always(history: History) -> list[str]:
    """Check what holds of every run, whatever happened to it."""
    if history.is_script:
        return list(map(_left_behind, history.leftovers))
    found = [*_supervisors(history), *_commits(history), *_samples(history), *_checkpoints(history)]
    return found + list(map(_left_behind, history.leftovers))


def _left_behind(text: str) -> str:
    return f"left behind: {text}"


def _ended(history: History, *, finishes: bool) -> Iterator[str]:
    code = history.codes[-1] if history.codes else None
    if history.overdue:
        yield history.overdue
    elif finishes and code != Exit.DONE:
        yield f"it ended with exit code {code} and not with 0{_reason(history)}"
    elif not finishes and code != Exit.USER_CODE:
        yield f"it ended with exit code {code} and not with 1{_reason(history)}"


def _reason(history: History) -> str:
    return f": {history.failures[-1].message}" if history.failures else ""


def _classified(history: History) -> Iterator[str]:
    expected = [fault.type for fault in history.schedule if fault.type.classes]
    for number, kind in enumerate(expected):
        if number >= len(history.failures):
            yield "the failure was not noticed"
            return
        given = history.failures[number].kind
        if given not in [one.value for one in kind.classes]:
            yield f"its class is '{given}' and not '{kind.classes[0].value}'"
    for more in history.failures[len(expected) :]:
        yield f"a failure that was not injected: {more.kind}: {more.message}"
    charged = sum(fault.type.charged for fault in history.schedule)
    if charged != history.charged:
        yield f"it was charged {history.charged} restarts and not {charged}"


def _supervisors(history: History) -> Iterator[str]:
    """No more of them than were started by the drill, or by a cluster that was asked to."""
    started = len(history.of(RunStarted))
    if started > len(history.codes) + len(history.of(Requeued)) + bool(history.overdue):
        yield f"{started} supervisors worked on the run, and {len(history.codes)} were started"


def _commits(history: History) -> Iterator[str]:
    """Steps of commits rise; an attempt begins at the newest of them, or at an in-memory checkpoint that is newer; no attempt's number is
    used twice."""
    committed, begun, seen, damaged, another = 0, 0, set[int](), False, False
    for event in history.events:
        if isinstance(event, RunStarted):
            # The one before it may have been killed between a commit and its entry in the log.
            another = True
        elif isinstance(event, CheckpointSaved):
            if event.step <= max(committed, begun) and not damaged:
                yield f"the commit of step {event.step} came after that of step {max(committed, begun)}"
            committed = event.step
        elif isinstance(event, CheckpointQuarantined):
            damaged = True
        elif isinstance(event, AttemptStarted):
            if event.attempt in seen:
                yield f"attempt {event.attempt} was started twice"
            seen.add(event.attempt)
            newer = event.step > committed and (event.memory or another)
            if event.step != committed and not newer and not damaged:
                yield f"attempt {event.attempt} began at step {event.step} although step {committed} was committed"
            begun, committed = event.step, committed if event.memory else event.step
            damaged = another = False


def _samples(history: History) -> Iterator[str]:
    found = audit(history.run)
    if found is None:
        return
    if not found.clean:
        yield f"samples: {found.twice} twice, {found.skipped} skipped, {found.altered} altered ({'; '.join(found.problems[:1])})"


def _checkpoints(history: History) -> Iterator[str]:
    """Check that all listed checkpoints verify, and that the state of the last step is among them if the run is
    done."""
    job = history.run.job()
    if not job.storage.url:
        for folder in sorted(history.run.checkpoints.glob(f"step-*/{MANIFEST}")):
            manifest = parsed(folder.read_bytes())
            files = {} if isinstance(manifest, str) else manifest.files
            problem = manifest if isinstance(manifest, str) else verify(
                files, lambda name, entry, at=folder.parent: "" if hashed(at / name) == tuple(entry) else "is not what was written"  # type: ignore[misc]
            )  # fmt: skip
            if problem and not _was_damaged_on_purpose(history):
                yield f"the checkpoint {folder.parent.name} is listed and {problem}"
    if history.codes and history.codes[-1] == Exit.DONE:
        try:
            valid = [one for one in store_of(history.run, job).latest_valid() if isinstance(one, CheckpointInfo)]
        except (DtrainError, OSError) as error:
            yield f"its checkpoints cannot be read: {error}"
            return
        if not valid or valid[0].step != job.train.steps:
            yield f"it ended with 0, and the state of step {job.train.steps} is not on disk"


def _was_damaged_on_purpose(history: History) -> bool:
    """The damaged one may still lie there if nothing was restored since."""
    return any(fault.type.side is Side.CHECKPOINT for fault in history.schedule) and len(history.of(AttemptStarted)) < 2
