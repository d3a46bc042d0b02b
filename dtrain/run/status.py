"""What a run looks like now: a fold over its diary that status, lists and the live view share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from dtrain.common.errors import Exit
from dtrain.run.event_log import Event


@dataclass
class RunState:
    """The sum of all events so far."""

    run: str = ""
    target: str = ""
    strategy: str = ""
    cluster: str = ""
    workers: int = 0
    nodes: int = 0
    storage: str = ""
    """URL of its copy, where it has one."""
    began: float = 0.0
    """Seconds since 1970, of the newest supervisor."""
    changed: float = 0.0
    attempt: int = 0
    step: int = 0
    total_steps: int | None = None
    trained_since: float = 0.0
    """Seconds since 1970, of the first step of the attempt under way."""
    first_step: int = 0
    """Of the attempt under way."""
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
    saved_step: int | None = None
    weights: str = ""
    """Digest of the newest checkpoint's weights."""
    failures: list[Event] = field(default_factory=list)
    restarts: int = 0
    phase: str = "starting"
    stopping: str = ""
    exit_code: int | None = None
    reason: str = ""
    report: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Take in one event."""
        self.changed = event.get("time", self.changed)
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler:
            handler(event)

    @property
    def outcome(self) -> str:
        """One word for a list of runs."""
        if self.exit_code is None:
            return "stopping" if self.stopping else self.phase
        return {Exit.DONE: "done", Exit.USER_CODE: "failed", Exit.RESUMABLE: "stopped"}.get(
            Exit(self.exit_code), "gave up"
        )

    def public(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"outcome": self.outcome}

    def _on_run(self, event: Event) -> None:
        self.run, self.target, self.strategy = event["run"], event["target"], event["strategy"]
        self.cluster, self.workers, self.nodes = event["cluster"], event["workers"], event["nodes"]
        self.storage = event.get("storage") or ""
        self.began, self.exit_code, self.stopping, self.phase = event["time"], None, "", "starting"
        self.reason = ""

    def _on_node(self, event: Event) -> None:
        self.hosts[event["node"]] = event["host"]

    def _on_node_lost(self, event: Event) -> None:
        self.hosts.pop(event["node"], None)

    def _on_attempt(self, event: Event) -> None:
        self.attempt, self.step, self.first_step = event["attempt"], event["step"], event["step"]
        self.workers, self.steps, self.pids, self.placed = event["workers"], {}, {}, {}
        self.phase = "starting" if not self.failures else "restarting"

    def _on_started(self, event: Event) -> None:
        self.pids |= event["pids"]
        self.placed |= dict.fromkeys(event["pids"], event["node"])
        self.phase = "running"

    def _on_training(self, event: Event) -> None:
        self.total_steps, self.trained_since = event["total_steps"], event["time"]

    def _on_progress(self, event: Event) -> None:
        self.steps |= event["steps"]
        self.step = max(self.step, event["step"])

    def _on_metrics(self, event: Event) -> None:
        self.metrics, self.step = event["values"], max(self.step, event["step"])
        self.samples_per_second = event.get("samples_per_second") or self.samples_per_second

    def _on_evaluation(self, event: Event) -> None:
        self.evaluation, self.step = event["values"], max(self.step, event["step"])

    def _on_checkpoint(self, event: Event) -> None:
        self.saved_step, self.weights = event["step"], event["weights"]

    def _on_checkpoint_failed(self, event: Event) -> None:
        self.warnings.append(f"the checkpoint of step {event['step']} failed: {event['error']}")

    def _on_checkpoint_damaged(self, event: Event) -> None:
        self.warnings.append(f"a damaged checkpoint was set aside as {event['folder']}: {event['problem']}")

    def _on_warning(self, event: Event) -> None:
        if event["text"] not in self.warnings:
            self.warnings.append(event["text"])

    def _on_storage_failed(self, event: Event) -> None:
        self.warnings.append(event["error"])

    def _on_failure(self, event: Event) -> None:
        self.failures.append(event)
        self.phase = "failed"

    def _on_decision(self, event: Event) -> None:
        self.restarts += bool(event["retry"])

    def _on_stopping(self, event: Event) -> None:
        self.stopping = event["why"]

    def _on_end(self, event: Event) -> None:
        self.exit_code, self.reason, self.report = event["exit_code"], event["reason"], event["report"]


def fold(events: Iterable[Event]) -> RunState:
    """The state after these events."""
    state = RunState()
    for event in events:
        state.add(event)
    return state
