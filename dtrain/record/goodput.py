"""Goodput: what a run spent its time on, read from its event log and the ledgers of rank 0.

The time is cut into spans that follow each other without a gap; the account, the timeline of a report and the cost of a failure are sums
of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field
from enum import Enum

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record import event_log
from dtrain.record.events import (
    AttemptStarted,
    CheckpointSaved,
    Evaluation,
    Event,
    FailureOccurred,
    Metrics,
    NodeReady,
    Progress,
    Requeued,
    RunEnded,
    RunStarted,
    TrainingStarted,
    WorkersStarted,
)
from dtrain.record.folder import RunDir
from dtrain.record.sample_ledger import LedgerFile
from dtrain.record.step_times import StepTimes

SHARES = ("total", "goodput", "effective_share", "training_share")
"""Keys of an account that are no part of the total; older runs have the last one."""


class Kind(Enum):
    """Uses of a span of time; the values are the keys of the account."""

    TRAINING = "training"
    """Steps that stand in the committed history."""
    SCRIPT = "script"
    """A script's own time, from the start of its workers to their end or failure: its steps are not known."""
    EVALUATION = "evaluation"
    CHECKPOINT_STALL = "checkpoint_stall"
    """Training held still to copy state."""
    WASTED_STEPS = "wasted_steps"
    """Steps that a failure undid."""
    DETECTION = "detection"
    """From the last step to the moment a failure was known."""
    RESTART = "restart"
    """The time from a known failure, or a change of nodes, to the next step."""
    INIT = "init"
    """The time before the first step of a supervisor's first attempt."""
    WAITING = "waiting_for_resources"
    """Until the nodes of an attempt were there."""
    SHUTDOWN = "shutdown"
    """From the last step to the end."""
    QUEUED = "queued"
    """The cluster had the run in its queue: nobody supervised it, so it is no part of the total."""
    STOPPED = "stopped"
    """Between an end and a resume by a person; no part of anything."""


DATA_WAIT = "data_wait"
"""Key of the account: the part of the training steps in which rank 0 waited for data."""
APART = (Kind.QUEUED, Kind.STOPPED)
"""Kinds without a supervisor."""


@dataclass(frozen=True)
class Span:
    """An interval of a run's time, in seconds since 1970."""

    kind: Kind
    begin: float
    end: float
    attempt: int = 0

    @property
    def seconds(self) -> float:
        """Length of the span."""
        return self.end - self.begin


@dataclass()
class FailureCost:
    """The cost of a failure, in seconds."""

    failure: FailureOccurred
    steps: int = 0
    """Steps that it undid."""
    wasted_steps: float = 0.0
    detection: float = 0.0
    restart: float = 0.0
    """Seconds until the next step, waiting for nodes included."""

    @property
    def seconds(self) -> float:
        """Sum of all parts."""
        return self.wasted_steps + self.detection + self.restart


@dataclass(frozen=True)
class Timeline:
    """A run's time, cut into spans."""

    spans: tuple[Span, ...] = ()
    data_wait: float = 0.0
    """Seconds of the training spans in which rank 0 waited for data."""
    failures: tuple[FailureCost, ...] = ()

    def seconds(self) -> dict[str, float]:
        """Kind → seconds, all kinds of a supervised run and the queue; the training without its data wait."""
        found: dict[str, float] = {kind.value: 0.0 for kind in Kind if kind is not Kind.STOPPED}
        found[DATA_WAIT] = 0.0
        for span in self.spans:
            if span.kind is not Kind.STOPPED:
                found[span.kind.value] += span.seconds
        found[DATA_WAIT] = min(self.data_wait, found[Kind.TRAINING.value])
        found[Kind.TRAINING.value] -= found[DATA_WAIT]
        return found

    @property
    def total(self) -> float:
        """Seconds in which a supervisor worked on the run."""
        return sum(span.seconds for span in self.spans if span.kind not in APART)

    @property
    def goodput(self) -> float:
        """Share of the total that was training on steps that stand, waiting for data not counted; between 0 and 1."""
        return self.seconds()[Kind.TRAINING.value] / self.total if self.total else 0.0

    @property
    def effective_share(self) -> float:
        """The same share of the time from the submission on, queues included; the time a person had it stopped is not."""
        seconds = self.seconds()
        wall = self.total + seconds[Kind.QUEUED.value]
        return seconds[Kind.TRAINING.value] / wall if wall else 0.0


@dataclass()
class _AttemptFacts:
    """Facts about one attempt in the event log."""

    step: int
    """Steps that were done at its begin."""
    steps: StepTimes
    evaluations: list[tuple[float, float]] = field(default_factory=list)
    stalls: list[tuple[int, float]] = field(default_factory=list)
    """(steps done, seconds)."""


Mark = RunStarted | NodeReady | AttemptStarted | WorkersStarted | FailureOccurred | Requeued | RunEnded


class TimelineBuilder:
    """Takes in the events of a run one by one, and keeps only what spans are made of."""

    def __init__(self, ledger: Callable[[int], LedgerFile], submitted: float | None = None) -> None:
        self._ledger = ledger
        """Attempt → the ledger of its rank 0."""
        self._submitted = submitted
        self._marks: list[Mark] = []
        self._attempts: dict[int, _AttemptFacts] = {}
        self._current: _AttemptFacts | None = None

    def add(self, event: Event) -> None:
        """Take in the next event."""
        now = self._current
        if isinstance(event, Metrics | Progress):
            if now:
                now.steps.add(event)
        elif isinstance(event, Evaluation):
            if now:
                now.steps.restart_wait(event.time)
                now.evaluations.append((event.time - event.seconds, event.time))
        elif isinstance(event, TrainingStarted):
            if now:
                now.steps.began(event)
        elif isinstance(event, CheckpointSaved):
            if now and event.stall_seconds:
                now.stalls.append((event.step, event.stall_seconds))
        elif isinstance(event, NodeReady) and self._marks and isinstance(self._marks[-1], NodeReady):
            self._marks[-1] = event
        elif isinstance(event, Mark):
            if isinstance(event, AttemptStarted):
                now = _AttemptFacts(event.step, StepTimes(self._ledger(event.attempt)))
                self._attempts[event.attempt] = self._current = now
            elif isinstance(event, RunStarted | RunEnded):
                self._current = None
            self._marks.append(event)

    def timeline(self, end: float | None = None) -> Timeline:
        """The spans so far. `end` closes the last one if the log has no end; without it, it is as long as steps are known."""
        cutter = _Cutter(self._attempts, self._submitted)
        for mark in self._marks:
            cutter.add(mark)
        if end is not None:
            cutter.close(end)
        undone = _undone_from(self._attempts)
        waited = sum(facts.steps.data_wait(undone[number]) for number, facts in self._attempts.items())
        return Timeline(tuple(cutter.spans), waited, tuple(cutter.failures))


def _undone_from(attempts: dict[int, _AttemptFacts]) -> dict[int, int | None]:
    """Attempt → its first step that a later one did again, if any."""
    found: dict[int, int | None] = {}
    lowest: int | None = None
    for number in sorted(attempts, reverse=True):
        found[number] = lowest
        step = attempts[number].step
        lowest = step if lowest is None else min(lowest, step)
    return found


class _Cutter:
    """Walks over the marks of a run; `_mark` is the time up to which everything is in a span."""

    def __init__(self, attempts: dict[int, _AttemptFacts], submitted: float | None) -> None:
        self._attempts = attempts
        self._submitted = submitted
        self.spans: list[Span] = []
        self.failures: list[FailureCost] = []
        self._mark: float | None = None
        self._ended: float | None = None
        self._ready = 0.0
        """When the last node was ready that the next attempt waited for."""
        self._attempt = 0
        self._trained = self._requeued = self._script = self._runs = self._stepped = False
        self._wasted = (0, 0.0)
        self._open: FailureCost | None = None
        """The failure whose restart is under way."""
        self._undone = _undone_from(attempts)

    def add(self, mark: Mark) -> None:
        """Cut the time up to a mark."""
        if isinstance(mark, RunStarted):
            self._on_run(mark)
        elif self._mark is None:
            return
        elif isinstance(mark, NodeReady):
            self._ready = mark.time
        elif isinstance(mark, AttemptStarted):
            self._on_attempt(mark)
        elif isinstance(mark, WorkersStarted):
            if self._script and not self._runs:
                self._to_training(mark.time)
                self._runs = True
        elif isinstance(mark, FailureOccurred):
            self._on_failure(mark)
        elif isinstance(mark, Requeued):
            self._requeued = True
        else:
            self.close(mark.time)

    def close(self, now: float) -> None:
        """Note that a supervisor left."""
        if self._mark is not None:
            kind = Kind.SCRIPT if self._runs else Kind.SHUTDOWN if self._trained else Kind.INIT
            self._after_steps(kind, now)
            self._mark, self._runs, self._ended, self._open = None, False, now, None

    def _on_run(self, started: RunStarted) -> None:
        crashed, submitted = self._mark is not None, self._submitted
        if self._mark is not None:  # the supervisor before it logged no end
            self.close(self._mark)
        queued_from = None
        if self._ended is None or (submitted is not None and submitted > self._ended):
            queued_from = submitted
        elif self._requeued or (crashed and submitted is not None):
            queued_from = self._ended
        if self._ended is not None:
            self._cut(Kind.STOPPED, self._ended, started.time if queued_from is None else queued_from)
        if queued_from is not None:
            self._cut(Kind.QUEUED, queued_from, started.time)
        self._mark = self._ready = started.time
        self._script = started.kind == "script"
        self._trained = self._requeued = self._runs = self._stepped = False

    def _on_attempt(self, started: AttemptStarted) -> None:
        assert self._mark is not None
        facts = self._attempts[started.attempt]
        self._attempt, self._stepped, self._wasted = started.attempt, False, (0, 0.0)
        first, last = facts.steps.first, facts.steps.last
        if self._script or first is None or last is None:
            return
        self._to_training(first.time)
        undone = self._undone[started.attempt]
        kept = last if undone is None or undone >= last.step else facts.steps.at(max(undone, first.step)) or first
        begin = self._mark
        self._with_pauses(Kind.TRAINING, begin, kept.time, facts)
        self._cut(Kind.WASTED_STEPS, max(begin, kept.time), last.time)
        steps = 0 if undone is None else max(0, last.step - max(undone, facts.step))
        self._wasted = (steps, max(0.0, last.time - max(begin, kept.time)))
        self._mark, self._stepped = max(begin, last.time), True

    def _to_training(self, first: float) -> None:
        """Up to the first step of an attempt: waiting for nodes, then starting."""
        assert self._mark is not None
        begin = self._mark
        ready = min(max(begin, self._ready), max(begin, first))
        self._cut(Kind.WAITING, begin, ready)
        self._cut(Kind.RESTART if self._trained else Kind.INIT, ready, first)
        if self._open:
            self._open.restart += max(0.0, first - begin)
            self._open = None
        self._mark, self._trained = max(begin, first), True

    def _on_failure(self, failure: FailureOccurred) -> None:
        assert self._mark is not None
        begin, time = self._mark, max(self._mark, failure.time)
        cost = FailureCost(failure)
        if self._runs:
            self._cut(Kind.SCRIPT, begin, time)
        elif self._stepped:
            cost.steps, cost.wasted_steps = self._wasted
            cost.detection = time - begin
            self._after_steps(Kind.DETECTION, time)
        else:  # it failed before its first step
            if self._open:
                self._open.restart += time - begin
            self._cut(Kind.RESTART if self._trained else Kind.INIT, begin, time)
        self.failures.append(cost)
        self._open, self._mark, self._runs, self._stepped = cost, time, False, False

    def _after_steps(self, kind: Kind, end: float) -> None:
        """From the last step to an end or a failure; an evaluation or a save may be in it."""
        assert self._mark is not None
        facts = self._attempts.get(self._attempt)
        if facts and kind is Kind.SHUTDOWN:
            self._with_pauses(kind, self._mark, end, facts)
        else:
            self._cut(kind, self._mark, end)

    def _with_pauses(self, kind: Kind, begin: float, end: float, facts: _AttemptFacts) -> None:
        """A span, and in it the evaluations and the saves of its attempt."""
        for pause, since, until in _pauses(facts):
            since, until = max(begin, since), min(end, until)
            if since < until:
                self._cut(kind, begin, since)
                self._cut(pause, since, until)
                begin = until
        self._cut(kind, begin, end)

    def _cut(self, kind: Kind, begin: float, end: float) -> None:
        if end > begin:
            self.spans.append(Span(kind, begin, end, self._attempt))


def _pauses(facts: _AttemptFacts) -> Iterator[tuple[Kind, float, float]]:
    """Evaluations and saves of an attempt, in order of time."""
    found = [(begin, end, Kind.EVALUATION) for begin, end in facts.evaluations if end > begin]
    for step, seconds in facts.stalls:
        saved = facts.steps.at(step)
        if saved is not None:
            found.append((saved.time, saved.time + seconds, Kind.CHECKPOINT_STALL))
    for begin, end, kind in sorted(found, key=lambda pause: pause[:2]):
        yield kind, begin, end


def builder(run: RunDir) -> TimelineBuilder:
    """For the events of this run."""
    submitted = run.submitted()
    return TimelineBuilder(lambda attempt: LedgerFile(run.ledger(attempt, 0)), submitted.time if submitted else None)


def account_of(timeline: Timeline, *, script: bool) -> dict[str, float]:
    """Seconds by kind, rounded for the event log, with the total and, if steps are known, the shares."""
    shares = {} if script else {"goodput": timeline.goodput, "effective_share": timeline.effective_share}
    values = {"total": timeline.total} | timeline.seconds() | shares
    return {name: round(value, 3) for name, value in values.items()}


def account(run: RunDir, now: float) -> dict[str, float]:
    """The account of a run that ends now; empty if its log or a ledger cannot be read at that moment, which does not change how the run
    ends."""
    found, script = builder(run), False
    try:
        for event in event_log.Reader(run.events).new():
            script = event.kind == "script" if isinstance(event, RunStarted) else script
            found.add(event)
        return account_of(found.timeline(now), script=script)
    except (OSError, ValueError):
        return {}
