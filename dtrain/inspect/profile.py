"""`dtrain profile`: has some ranks of a run profile the same steps, and shows what took the most time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence

from dtrain.common.errors import UsageError
from dtrain.control.ask import ask, copy_of, require_running
from dtrain.record import event_log
from dtrain.record.events import StepsProfiled
from dtrain.record.folder import RunDir
from dtrain.record.inspection import InspectionRequest
from dtrain.storage import run_sync

POLL_SECONDS = 0.2


def profiled(run: RunDir, ranks: Sequence[int], steps: int) -> Iterator[StepsProfiled]:
    """Yields the profile of each rank when it is written; raises `UsageError` if the run ends before."""
    state = require_running(run, "A profile is made of a run that trains.")
    if state.kind == "script":
        raise UsageError(
            f"{run.id} runs a script, which has a loop of its own", "Profile it inside, or see dtrain stacks."
        )
    if unknown := [rank for rank in ranks if rank >= max(1, len(state.pids))]:
        raise UsageError(f"{run.id} has no rank {unknown[0]}: it has ranks 0 to {len(state.pids) - 1}", "")
    request = InspectionRequest(secrets.token_hex(8), tuple(ranks), stacks=False, profile_steps=steps)
    log = event_log.Reader(run.events)
    list(log.new())
    ask(run, copy_of(run), request)
    missing = set(ranks)
    while missing:
        time.sleep(POLL_SECONDS)
        run_sync.refresh(run)
        for event in log.new():
            if isinstance(event, StepsProfiled) and event.request == request.id:
                missing.discard(event.rank)
                yield event
        if missing and not run.supervised():
            raise UsageError(f"{run.id} ended before all of these steps were done", "Ask for fewer steps, or earlier.")


def text(run: RunDir, event: StepsProfiled) -> str:
    """Format one rank's profile."""
    if event.problem:
        return f"rank {event.rank}: no profile: {event.problem}"
    last = event.step + event.steps - 1
    path = run.path / event.file
    where = ", ".join(str(one) for one in sorted(path.parent.glob(f"{path.name}*"))) or f"{path} on its node"
    return f"rank {event.rank}, steps {event.step} to {last}: {where}\n{event.operations}".rstrip()
