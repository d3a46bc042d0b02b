"""`dtrain resize`: a run saves at an agreed step, leaves, and is started again at another size."""

from __future__ import annotations

from dtrain.common.errors import Exit, UsageError
from dtrain.control import create, start, state
from dtrain.control.overrides import Overrides
from dtrain.control.stop import stop
from dtrain.record import code_snapshot
from dtrain.record.folder import RunDir, Submitted


def resize(run: RunDir, given: Overrides) -> Submitted | None:
    """Have a run go on with these settings; returns where it was started again, or None if it came to its end meanwhile. Raises `UsageError`
    for a size that it cannot have, before anything is stopped."""
    if not given:
        raise UsageError("nothing says how large the run is to be", f"For example: dtrain resize {run.id} --workers 4")
    if not state.goes_on(run):
        words = " ".join(option for _, _, option in given if option.startswith("--"))
        raise UsageError(
            f"{run.id} is not running: {state.state_of(run).outcome}", f"Go on with it: dtrain resume {run.id} {words}"
        )
    job = run.job()
    if job.kind == "script":
        raise UsageError(
            f"{run.id} runs a script, which keeps its own checkpoints",
            f"Stop it and go on from its own: dtrain stop {run.id}; dtrain resume {run.id}",
        )
    with code_snapshot.used(run.code, job.folder):
        create.overridden(run, job, given)
    stop(run, now=False, wait=True)
    if state.state_of(run).exit_code == Exit.DONE:
        return None
    create.prepare_resume(run, given, None)
    return start.submit(run)
