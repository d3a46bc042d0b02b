"""`dtrain stop`: asks a run to save and stop, wherever it is supervised."""

from __future__ import annotations

import time

from dtrain.api.cluster import SubmissionState
from dtrain.common.errors import ClusterError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.control.state import state_of, submission
from dtrain.launch import registry
from dtrain.record import mailbox
from dtrain.record.event_log import Reader
from dtrain.record.events import RunEnded
from dtrain.record.folder import RunDir
from dtrain.record.status import RunState
from dtrain.storage import run_sync

POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
ASK_SECONDS = 2.0
"""Between two looks at the whole state of the run, which reads its event log and asks its cluster."""


@dataclass(frozen=True)
class Stopped:
    """The outcome of a request to stop."""

    text: str
    ended: RunState | None = None
    """The state of a run that ended while its end was waited for."""


def stop(run: RunDir, *, now: bool, wait: bool) -> Stopped:
    """Ask the supervisor to stop, and wait for it; one that does not answer is ended by its cluster."""
    state = state_of(run)
    if state.exit_code is not None or state.phase == "lost":
        return Stopped(f"{run.id} is not running: {state.outcome}")
    if _cancel_queued(run):
        return Stopped(f"{run.id} was taken back from the cluster before it started")
    events = Reader(run.events)
    for _ in events.new():
        pass  # an end from before the request is none
    ask(run, "now" if now else "leave")
    if not wait:
        return Stopped(f"{run.id} was asked to stop")
    deadline = time.monotonic() + (0.0 if now else run.job().recovery.grace_seconds) + STOP_SECONDS
    ask_at = time.monotonic() + ASK_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        ended = any(isinstance(event, RunEnded) for event in events.new())
        if not ended and time.monotonic() < ask_at:
            continue
        ask_at = time.monotonic() + ASK_SECONDS
        state = state_of(run)
        if state.exit_code is not None or state.phase == "lost":
            return Stopped(f"{run.id} has ended: {state.outcome}", state)
        if _cancel_queued(run):
            return Stopped(f"{run.id} was taken back from the cluster, which had queued it again")
    if now and _cancel(run):
        return Stopped(f"{run.id} did not answer: it was ended by its cluster")
    raise ClusterError(f"{run.id} does not answer", f"End it: dtrain stop --now {run.id}")


def ask(run: RunDir, how: str) -> None:
    """Write the stop request of a run, "now" or "leave", so that its supervisor reads all of it or nothing."""
    run.mailbox.post(mailbox.STOP, how)
    copy = run_sync.of(run, run.job())
    if copy and not run.locked():
        copy.ask_to_stop(how)


def _cancel_queued(run: RunDir) -> bool:
    """Cancel a run that waits in its cluster's queue."""
    there = None if run.supervised() else submission(run)
    return bool(there and there.state is SubmissionState.PENDING) and _cancel(run)


def _cancel(run: RunDir) -> bool:
    submitted = run.submitted()
    if submitted is None:
        return False
    registry.cluster(submitted.cluster, run.job().cluster.options).cancel(run, submitted.reference)
    return True
