"""Queries of a run's history by a later supervisor."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.common.errors import Exit
from dtrain.record import event_log
from dtrain.record.events import AttemptStarted, BadStep, Event, Requeued, RunEnded
from dtrain.record.folder import RunDir


def attempts(run: RunDir) -> int:
    """The number of the last attempt; numbers are never used twice."""
    return max(
        (
            event.attempt
            for event in event_log.Reader(run.events, AttemptStarted).new()
            if isinstance(event, AttemptStarted)
        ),
        default=0,
    )


def ended_after(run: RunDir, position: int) -> Exit | None:
    """How the run ended after a position in its event log; None if it did not, or was requeued."""
    found, requeued = None, False
    for event in event_log.Reader(run.events, begin=position).new():
        if isinstance(event, RunEnded) and not requeued:
            found = Exit(event.exit_code)
        requeued = isinstance(event, Requeued)
    return found


def requeued_at(run: RunDir) -> int | None:
    """The step at which the run was last requeued, since a person started it."""
    submitted = run.submitted()
    events = event_log.Reader(run.events, Requeued, begin=submitted.position if submitted else 0).new()
    again = [event for event in events if isinstance(event, Requeued)]
    return again[-1].step if again else None


def rolled_back(run: RunDir) -> tuple[int, ...]:
    """Steps that the run goes on without, since it went back to a checkpoint because of them."""
    found = (event for event in event_log.Reader(run.events, BadStep).new() if isinstance(event, BadStep))
    return tuple(sorted({event.step for event in found if event.answer == "rollback"}))


def attempt_starts(history: Sequence[Event]) -> dict[int, int]:
    """Attempt → the step it began at."""
    return {event.attempt: event.step for event in history if isinstance(event, AttemptStarted)}
