"""The state of a run: a fold over its event log that status, ps and the live view share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, field
from typing import Any

from dtrain.common.errors import Exit
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject
from dtrain.record import events
from dtrain.record.events import Event


@dataclass
class RunState:
    """The sum of all events so far."""

    run: str = ""
    target: str = ""
    kind: str = ""
    """task, function or script."""
    strategy: str = ""
    cluster: str = ""
    workers: int = 0
    nodes: int = 0
    global_batch: int = 0
    storage: str = ""
    """URL of its copy on remote storage, or ''."""
    code: str = ""
    """Digest of the code that it trains with."""
    began: float = 0.0
    """Seconds since 1970, of the newest supervisor."""
    first_began: float = 0.0
    """Start of the first supervisor."""
    changed: float = 0.0
    attempt: int = 0
    step: int = 0
    total_steps: int | None = None
    trained_since: float = 0.0
    """Seconds since 1970, of the first step of the attempt under way."""
    first_step: int = 0
    """First step of the current attempt."""
    steps: dict[str, int] = field(default_factory=dict)
    """Rank → steps done."""
    pids: dict[str, int] = field(default_factory=dict)
    """Rank → process id on its node."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Node → host name."""
    placed: dict[str, str] = field(default_factory=dict)
    """Rank → node."""
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    samples_per_second: float | None = None
    data_wait: float = 0.0
    """Share of the training time that rank 0 waited for data, a mean over the steps of the attempt so far, 0 to 1."""
    data_workers: int = 0
    """Data workers of rank 0."""
    data_wait_step: int = 0
    """The step up to which `data_wait` is known."""
    saved_step: int | None = None
    weights: str = ""
    """Digest of the newest checkpoint's weights."""
    saving: tuple[float, float] = 0.0, 0.0
    """Seconds until the newest checkpoint was on disk, and that the training stood still for it."""
    memory_every: int = 0
    """Steps between two in-memory checkpoints; 0: there are none, or it is not known yet."""
    memory_seconds: float = 0.0
    """Seconds that the training stands still for one."""
    failures: list[events.FailureOccurred] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    """Steps that the run went on without (`train.on_nonfinite`, `train.spike`)."""
    restarts: int = 0
    phase: str = "starting"
    stopping: str = ""
    exit_code: int | None = None
    reason: str = ""
    report: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    stragglers: list[int] = field(default_factory=list)
    """Ranks that the others wait for."""
    debugged: list[int] = field(default_factory=list)
    """Ranks that are stopped in a debugger."""

    def add(self, event: Event) -> None:
        """Apply one event."""
        self.changed = event.time or self.changed
        handler = HANDLERS.get(type(event))
        if handler:
            handler(self, event)

    @property
    def outcome(self) -> str:
        """One word for a list of runs."""
        if self.exit_code is None:
            return "stopping" if self.stopping else self.phase
        return {
            Exit.DONE: "done",
            Exit.USER_CODE: "failed",
            Exit.RESUMABLE: "stopped",
            Exit.INTERRUPTED: "stopped",
        }.get(Exit(self.exit_code), "gave up")

    def public(self) -> JsonObject:
        """Convert to plain data for `--json`."""
        return asdict(self) | {"outcome": self.outcome}


def _on_run(state: RunState, event: events.RunStarted) -> None:
    state.run, state.target, state.strategy = event.run, event.target, event.strategy
    state.cluster, state.workers, state.nodes = event.cluster, event.workers, event.nodes
    state.storage, state.kind, state.global_batch = event.storage or "", event.kind, event.global_batch
    if state.code and event.code != state.code:
        state.warnings.append(f"from step {state.step} on it trains with other code than before")
    state.code = event.code
    state.first_began = state.first_began or event.time
    state.began, state.exit_code, state.stopping, state.phase = event.time, None, "", "starting"
    state.reason = ""


def _on_nodes_awaited(state: RunState, event: events.NodesAwaited) -> None:
    state.phase, state.reason = ("waiting", f"for {event.why}") if event.why else ("starting", "")


def _on_node(state: RunState, event: events.NodeReady) -> None:
    state.hosts[event.node] = event.host


def _on_node_lost(state: RunState, event: events.NodeLost) -> None:
    state.hosts.pop(event.node, None)


def _on_attempt(state: RunState, event: events.AttemptStarted) -> None:
    state.attempt, state.step, state.first_step = event.attempt, event.step, event.step
    state.workers, state.steps, state.pids, state.placed, state.debugged = event.workers, {}, {}, {}, []
    state.stragglers = []
    state.data_wait, state.data_wait_step = 0.0, event.step
    state.phase = "starting" if not state.failures else "restarting"


def _on_started(state: RunState, event: events.WorkersStarted) -> None:
    state.pids |= event.pids
    state.placed |= dict.fromkeys(event.pids, event.node)
    state.phase = "running"


def _on_training(state: RunState, event: events.TrainingStarted) -> None:
    state.total_steps, state.trained_since = event.total_steps, event.time


def _on_progress(state: RunState, event: events.Progress) -> None:
    state.steps |= event.steps
    state.step = max(state.step, event.step)


def _on_metrics(state: RunState, event: events.Metrics) -> None:
    state.metrics, state.step = event.values, max(state.step, event.step)
    if event.data_wait is not None and event.step > state.data_wait_step:
        new = (event.step - state.data_wait_step) / max(1, event.step - state.first_step)
        state.data_wait += (event.data_wait - state.data_wait) * min(1.0, new)
        state.data_wait_step, state.data_workers = event.step, event.data_workers
    state.samples_per_second = event.samples_per_second or state.samples_per_second


def _on_evaluation(state: RunState, event: events.Evaluation) -> None:
    state.evaluation, state.step = event.values, max(state.step, event.step)


def _on_checkpoint(state: RunState, event: events.CheckpointSaved) -> None:
    state.saved_step, state.weights = event.step, event.weights
    state.saving = event.seconds, event.stall_seconds


def _on_memory_interval(state: RunState, event: events.MemoryInterval) -> None:
    state.memory_every, state.memory_seconds = event.every_steps, event.seconds


def _on_checkpoint_failed(state: RunState, event: events.CheckpointFailed) -> None:
    state.warnings.append(f"the checkpoint of step {event.step} failed: {event.error}")


def _on_quarantined(state: RunState, event: events.CheckpointQuarantined) -> None:
    state.warnings.append(f"a damaged checkpoint was set aside as {event.folder}: {event.problem}")


def _on_taken_over(state: RunState, event: events.StateTakenOver) -> None:
    state.saved_step, state.weights = event.step, event.weights


def _on_warning(state: RunState, event: events.UserWarned) -> None:
    if event.text not in state.warnings:
        state.warnings.append(event.text)


def _on_storage_failed(state: RunState, event: events.StorageFailed) -> None:
    state.warnings.append(event.error)


def unlogged(event: events.TrackerFailed) -> str:
    """Describe in one line what a tracker lacks at the end of a run."""
    return f"tracker {event.tracker}: the newest values are not logged ({event.error}); dtrain track logs them"


def _on_tracker_failed(state: RunState, event: events.TrackerFailed) -> None:
    if event.ended:
        state.warnings.append(unlogged(event))


def _on_tracker_works(state: RunState, event: events.TrackerWorks) -> None:
    state.warnings = [text for text in state.warnings if not text.startswith(f"tracker {event.tracker}: ")]


def _on_failure(state: RunState, event: events.FailureOccurred) -> None:
    state.failures.append(event)
    state.step = max(state.step, event.step or 0)
    state.phase = "recovering"  # an end follows if it does not


def _on_bad_step(state: RunState, event: events.BadStep) -> None:
    if event.left_out and event.step not in state.left_out:
        state.left_out.append(event.step)


def _on_decision(state: RunState, event: events.DecisionMade) -> None:
    state.restarts += event.retry


def _on_stopping(state: RunState, event: events.StopRequested) -> None:
    state.stopping = event.why


def _on_straggler(state: RunState, event: events.StragglerFound) -> None:
    if event.rank not in state.stragglers:
        state.stragglers.append(event.rank)


def _on_straggler_over(state: RunState, event: events.StragglerOver) -> None:
    if event.rank in state.stragglers:
        state.stragglers.remove(event.rank)


def _on_debugger_stopped(state: RunState, event: events.DebuggerStopped) -> None:
    if event.rank not in state.debugged:
        state.debugged.append(event.rank)


def _on_debugger_left(state: RunState, event: events.DebuggerLeft) -> None:
    if event.rank in state.debugged:
        state.debugged.remove(event.rank)


def _on_end(state: RunState, event: events.RunEnded) -> None:
    state.exit_code, state.reason, state.report = event.exit_code, event.reason, event.report
    state.phase, state.stopping = "ended", ""


HANDLERS: dict[type[Event], Callable[[RunState, Any], None]] = {
    events.RunStarted: _on_run,
    events.NodesAwaited: _on_nodes_awaited,
    events.NodeReady: _on_node,
    events.NodeLost: _on_node_lost,
    events.AttemptStarted: _on_attempt,
    events.WorkersStarted: _on_started,
    events.TrainingStarted: _on_training,
    events.Progress: _on_progress,
    events.Metrics: _on_metrics,
    events.Evaluation: _on_evaluation,
    events.CheckpointSaved: _on_checkpoint,
    events.MemoryInterval: _on_memory_interval,
    events.CheckpointFailed: _on_checkpoint_failed,
    events.CheckpointQuarantined: _on_quarantined,
    events.StateTakenOver: _on_taken_over,
    events.UserWarned: _on_warning,
    events.StorageFailed: _on_storage_failed,
    events.TrackerFailed: _on_tracker_failed,
    events.TrackerWorks: _on_tracker_works,
    events.FailureOccurred: _on_failure,
    events.BadStep: _on_bad_step,
    events.DecisionMade: _on_decision,
    events.StopRequested: _on_stopping,
    events.StragglerFound: _on_straggler,
    events.StragglerOver: _on_straggler_over,
    events.DebuggerStopped: _on_debugger_stopped,
    events.DebuggerLeft: _on_debugger_left,
    events.RunEnded: _on_end,
}


def fold(history: Iterable[Event]) -> RunState:
    """The state after these events."""
    state = RunState()
    for event in history:
        state.add(event)
    return state
