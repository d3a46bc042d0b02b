"""How a command asks a run's supervisor about its workers: by a file in the run folder, or through the run's remote storage."""

from __future__ import annotations

from dtrain.common.errors import UsageError
from dtrain.control.state import state_of
from dtrain.record import inspection, mailbox
from dtrain.record.folder import RunDir
from dtrain.record.inspection import InspectionRequest
from dtrain.record.status import RunState
from dtrain.storage import run_sync
from dtrain.storage.run_copy import RunCopy


def require_running(run: RunDir, hint: str) -> RunState:
    """How a run that has a supervisor is doing; raises `UsageError` with this hint if it has none."""
    state = state_of(run)
    if state.exit_code is not None or not run.supervised():
        raise UsageError(f"{run.id} is not running: {state.outcome}", hint)
    return state


def copy_of(run: RunDir) -> RunCopy | None:
    """The run's remote storage, if its supervisor is reached by that alone."""
    return None if run.locked() else run_sync.of(run, run.job())


def ask(run: RunDir, copy: RunCopy | None, request: InspectionRequest) -> None:
    """Leave a request for the supervisor; does not wait for the answer."""
    text = inspection.request_text(request)
    if copy:
        copy.ask_to_inspect(text)
    else:
        run.mailbox.post(mailbox.INSPECT, text)
