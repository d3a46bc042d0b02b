"""What earlier supervisors of a run wrote down, as a later one asks for it."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.common.errors import Exit
from dtrain.run import event_log
from dtrain.run.folder import RunDir


def attempts(run: RunDir) -> int:
    """How many there were: numbers are never used twice."""
    return max((event["attempt"] for event in event_log.read(run.events) if event["event"] == "attempt"), default=0)


def ended_since(run: RunDir, since: float) -> Exit | None:
    """How the run came to an end after a time, in seconds since 1970; None where it did not, or was queued again."""
    found, queued_again = None, False
    for event in event_log.read(run.events):
        if event["event"] == "end" and event["time"] > since and not queued_again:
            found = Exit(event["exit_code"])
        queued_again = event["event"] == "requeued"
    return found


def requeued_at(run: RunDir) -> int | None:
    """The step at which the run was last queued again, since a person started it."""
    submitted = run.submitted()
    since = submitted.time if submitted else 0.0
    again = [event for event in event_log.read(run.events) if event["event"] == "requeued" and event["time"] > since]
    return again[-1]["step"] if again else None


def attempt_starts(history: Sequence[event_log.Event]) -> dict[int, int]:
    """Attempt → the step it began at."""
    return {event["attempt"]: event["step"] for event in history if event["event"] == "attempt"}


def undone_from(attempt: int, starts: dict[int, int]) -> int | None:
    """The first step of an attempt that a later one did again, if any."""
    return min((step for number, step in starts.items() if number > attempt), default=None)
