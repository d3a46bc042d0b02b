"""The state of a run: its event log, corrected by its supervisor's lock and its cluster."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import field

from dtrain.api.cluster import Submission, SubmissionState
from dtrain.common.errors import ClusterError, NewerFormat, RunNotFound, UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.launch import registry
from dtrain.record.event_log import Reader
from dtrain.record.events import Event, Requeued, RunEnded
from dtrain.record.folder import RunDir
from dtrain.record.metric_curves import HELD_OUT
from dtrain.record.status import RunState
from dtrain.storage import run_sync

START_SECONDS = 5.0
"""A run without events that is younger than this is still being started."""


def submission(run: RunDir) -> Submission | None:
    """Ask the cluster for the state of a submitted run; None for one that was not submitted."""
    submitted = run.submitted()
    if submitted is None:
        return None
    try:
        cluster = registry.cluster(submitted.cluster, run.job().cluster.options)
        return cluster.state(run, submitted.reference)
    except (ClusterError, RunNotFound, NewerFormat) as error:
        reason = " ".join(str(error).split())
        return Submission(SubmissionState.UNKNOWN, word="UNKNOWN", reason=reason, reference=submitted.reference)


class Watched:
    """A run whose state is asked for again and again: of its event log, only what is new is read."""

    def __init__(self, run: RunDir, on_event: Callable[[Event], None] = lambda event: None) -> None:
        self._run = run
        self._on_event = on_event
        self._events = Reader(run.events)
        self._state = RunState()
        self._newest = deque[Event](maxlen=2)

    @property
    def position(self) -> int:
        """In the event log, behind what was read of it."""
        return self._events.position

    def read(self, deadline: float = math.inf) -> bool:
        """Read what is new, until this moment (monotonic seconds) at most; whether that was all."""
        run_sync.refresh(self._run)
        for event in self._events.new():
            self._state.add(event)
            self._newest.append(event)
            self._on_event(event)
            if time.monotonic() > deadline:
                return False
        return True

    def state(self) -> RunState:
        """The state in what was read, corrected by what is known of the supervisor: a log that just stops has no end."""
        run, state = self._run, copy.copy(self._state)
        state.run = run.id
        if not state.target:
            job = run.job()
            state.target, state.strategy, state.cluster = job.target, job.strategy.name, job.cluster.name
            state.workers, state.phase = job.resources.workers, "created"
        if run.brought_from:
            state.reason = state.reason or f"as it was when it was brought from {run.brought_from}"
        elif _is_unfinished(run, state, self._newest) and not run.supervised():
            requeued = [type(event) for event in self._newest] == [Requeued, RunEnded]
            _correct_by_cluster(run, state, requeued=requeued)
        return state


def state_of(run: RunDir) -> RunState:
    """The state of a run now; see `Watched.state`."""
    watched = Watched(run)
    watched.read()
    return watched.state()


def _is_unfinished(run: RunDir, state: RunState, newest: Sequence[Event]) -> bool:
    """Whether more is to come: there is no end yet, or the cluster was given the run (again) after it."""
    if state.exit_code is None or any(isinstance(event, Requeued) for event in newest):
        return True
    submitted = run.submitted()
    return submitted is not None and submitted.position >= run.log_bytes()


def _correct_by_cluster(run: RunDir, state: RunState, *, requeued: bool) -> None:
    """No supervisor works on the run: it waits in a queue, or it is lost."""
    there = submission(run)
    if there and there.exists and not there.over:
        _show_submission(state, there, requeued=requeued)
    elif state.exit_code is None and (state.began or there or not run.is_younger_than(START_SECONDS)):
        state.phase = "lost"
        word = f"{there.word} {there.reason}".strip() if there else ""
        state.reason = (
            f"the cluster ended it, and its supervisor logged no end: {word}"
            if word
            else "its supervisor is gone and logged no end (killed, or its machine went down)"
        )


def _show_submission(state: RunState, there: Submission, *, requeued: bool) -> None:
    begun = state.exit_code is None and state.began > 0
    word = "REQUEUED" if requeued else there.word
    details = ", ".join(filter(None, (there.word if requeued else "", there.reason)))
    if not (begun and there.state is SubmissionState.RUNNING):
        state.phase = f"{word} ({details})" if details else word
    state.exit_code, state.stopping, state.reason = None, "", ""
    if not begun or requeued:
        state.pids = {}


def goes_on(run: RunDir) -> bool:
    """Whether the run is supervised here, or will be; one that cannot be read is not."""
    if run.supervised():
        return True
    if run.brought_from:
        return False
    try:
        state = state_of(run)
    except (RunNotFound, NewerFormat):
        return False
    return state.exit_code is None and state.phase != "lost"


def refuse_while_it_goes_on(run: RunDir) -> None:
    """Raises `UsageError` if a supervisor works on the run, or its cluster is going to start one."""
    if not goes_on(run):
        return
    state = state_of(run)
    if run.supervised() or state.phase != "created":
        raise UsageError(f"the run {run.id} is still going on: {state.outcome}", f"See it: dtrain status {run.id}")


def named(run: RunDir) -> tuple[dict[str, str], str]:
    """Read the tags and the note of a run; nothing if its job cannot be read."""
    try:
        job = run.job()
    except (RunNotFound, NewerFormat):
        return {}, ""
    return job.tags, job.note


@dataclass(frozen=True)
class RunRow:
    """One run in a list."""

    run: str
    state: str
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    strategy: str = "-"
    cluster: str = "-"
    workers: int = 0
    restarts: int = 0
    started: float | None = None
    """Seconds since 1970."""
    changed: float | None = None
    """Seconds since 1970, of the newest event."""
    reason: str = ""
    gpus: tuple[str, ...] = ()
    """Those of this machine that it has now."""
    tags: dict[str, str] = field(default_factory=dict)
    note: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    """Newest values; those on held-out data begin with `held-out `."""


def row(run: RunDir, gpus: Sequence[str] = ()) -> RunRow:
    """Return one run in a list, with the GPUs that it has; one that cannot be read is listed as such."""
    try:
        state = state_of(run)
    except UsageError as error:
        return RunRow(run.id, "unreadable", reason=error.message)
    return row_of(state, *named(run), gpus)


def row_of(state: RunState, tags: dict[str, str], note: str, gpus: Sequence[str] = ()) -> RunRow:
    """Return a run in this state as one in a list."""
    return RunRow(
        run=state.run, state=state.outcome, step=state.step, total_steps=state.total_steps, loss=state.metrics.get("loss"),
        strategy=state.strategy, cluster=state.cluster, workers=state.workers, restarts=state.restarts,
        started=state.first_began or None, changed=state.changed or None, reason=state.reason, gpus=tuple(gpus), tags=tags, note=note,
        metrics=state.metrics | {f"{HELD_OUT}{name}": value for name, value in state.evaluation.items()},
    )  # fmt: skip
