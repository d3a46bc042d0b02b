"""The notifications of a run: a few moments of its history, each once."""

from __future__ import annotations

from collections.abc import Iterator

from dtrain.common.errors import Exit
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject
from dtrain.job.job import Moment
from dtrain.record import events
from dtrain.record.events import Event
from dtrain.record.status import RunState

ENDS: dict[Exit, Moment] = {Exit.DONE: "finished", Exit.RESUMABLE: "stopped", Exit.INTERRUPTED: "stopped"}
"""Moment of each exit code; all others: failed."""


@dataclass(frozen=True)
class Notice:
    """A notification of one moment."""

    moment: Moment
    run: str
    text: str
    step: int
    total_steps: int | None
    exit_code: int | None

    def public(self) -> JsonObject:
        """Convert to plain data for a program or a web hook; `text` is what chat services show."""
        return {
            "event": self.moment, "run": self.run, "text": self.text, "step": self.step, "total_steps": self.total_steps,
            "exit_code": self.exit_code,
        }  # fmt: skip


class Notices:
    """A fold over the events of a run, of all its supervisors."""

    def __init__(self) -> None:
        self._state = RunState()
        self._failed: events.FailureOccurred | None = None
        self._requeued = False
        self._stalled = 0
        """The last attempt that a hang was told of."""

    def add(self, event: Event) -> Iterator[Notice]:
        """Apply one event, and return the notification that it causes."""
        self._state.add(event)
        if isinstance(event, events.RunStarted):
            self._requeued = False
        elif isinstance(event, events.AttemptStarted) and event.attempt == 1:
            yield self._notice("started", f"on {event.workers} workers, {', '.join(event.nodes)}")
        elif isinstance(event, events.FailureOccurred):
            self._failed = event
        elif isinstance(event, events.HangDetected) and event.attempt != self._stalled:
            self._stalled = event.attempt
            yield self._notice("stalled", "no rank moves; the stacks of all ranks are in their logs")
        elif isinstance(event, events.StorageFailed):
            yield self._notice("stalled", f"storage does not answer: {event.error}")
        elif isinstance(event, events.Requeued):
            self._requeued = True
            yield self._notice("requeued", event.words)
        elif isinstance(event, events.RunEnded) and not self._requeued:
            yield self._notice(ENDS.get(Exit(event.exit_code), "failed"), event.reason)
        elif self._failed and self._goes_on(event, self._failed):
            failure, self._failed = self._failed, None
            yield self._notice("recovered", f"attempt {self._state.attempt} trains, after: {failure.message}")

    def _goes_on(self, event: Event, failure: events.FailureOccurred) -> bool:
        """Whether this event shows that an attempt after the failure trains, or runs a script."""
        if isinstance(event, events.WorkersStarted):
            return self._state.kind == "script" and event.attempt > failure.attempt
        return isinstance(event, events.Metrics | events.CheckpointSaved) and event.attempt > failure.attempt

    def _notice(self, moment: Moment, why: str) -> Notice:
        state = self._state
        text = f"{state.run} {moment}: {why}" if why else f"{state.run} {moment}"
        if state.total_steps:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in (state.evaluation or state.metrics).items())
            text += f"\nstep {state.step} of {state.total_steps}" + (f", {numbers}" if numbers else "")
        if state.failures and moment in ("finished", "stopped", "failed"):
            text += f"\n{len(state.failures)} failures, the last one: {state.failures[-1].message}"
        return Notice(moment, state.run, text, state.step, state.total_steps, state.exit_code)
