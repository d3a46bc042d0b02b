"""`dtrain stacks` and `dtrain top`: asks a run's supervisor for the stacks and the resource usage of its workers, and shows them."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence

from dtrain.common.errors import ClusterError, UsageError
from dtrain.common.serde import JsonObject, to_dict
from dtrain.control.ask import ask, copy_of, require_running
from dtrain.record import inspection
from dtrain.record.folder import RunDir
from dtrain.record.inspection import Inspection, InspectionRequest, ThreadStack
from dtrain.show.render import clock_time, ranks
from dtrain.storage import run_sync

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 20.0
REMOTE_PATIENCE_SECONDS = 60.0
"""For a run that is reached by its remote storage."""
START_UP = re.compile(r"\bdtrain/(worker/main|agent/(zygote|fork_server|main))\.py\b")
"""Frames of dtrain's own start of a worker: what calls them says nothing."""
INSTALLED = re.compile(r'"[^"]*/lib/python3\.\d+/((site|dist)-packages/)?')
OWN = "dtrain/worker/control_channel.py"
"""In a thread that dtrain has in every worker."""


def inspected(run: RunDir, wanted: Sequence[int], *, stacks: bool, native: bool = False) -> Inspection:
    """Stacks and usage of the workers now; raises `UsageError` if none runs, `ClusterError` if the supervisor does not answer."""
    require_running(run, "Stacks of workers that hung are in their logs: dtrain logs.")
    request = InspectionRequest(secrets.token_hex(8), tuple(wanted), stacks, native)
    copy = copy_of(run)
    begin = run.inspections.stat().st_size if run.inspections.exists() else 0
    deadline = time.monotonic() + (REMOTE_PATIENCE_SECONDS if copy else PATIENCE_SECONDS)
    ask(run, copy, request)
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        run_sync.refresh(run)
        if found := _answer(run, request, begin):
            return _checked(run, found)
    raise ClusterError(f"the supervisor of {run.id} does not answer", f"How it is doing: dtrain status {run.id}")


def _answer(run: RunDir, request: InspectionRequest, begin: int) -> Inspection | None:
    if request.stacks:
        return next((one for one in inspection.answers(run.inspections, begin) if one.request == request.id), None)
    return next((one for one in inspection.answers(run.usage, 0) if one.request == request.id), None)


def _checked(run: RunDir, found: Inspection) -> Inspection:
    if found.problem:
        raise UsageError(f"{run.id}: {found.problem}", f"How it is doing: dtrain status {run.id}")
    return found


def text(run: RunDir, found: Inspection, *, whole: bool) -> str:
    """Format all threads of all ranks, equal ones once with their ranks."""
    steps = sorted({used.step for used in found.usage.values() if used.step is not None})
    at = "" if not steps else f", step {steps[0]}" if len(steps) == 1 else f", steps {steps[0]} to {steps[-1]}"
    lines = [f"{run.id}: attempt {found.attempt}, {clock_time(found.time)}{at}"]
    threads = inspection.by_thread(found.stacks)
    for thread in threads:
        if not whole and not thread.main and any(OWN in frame for frame in thread.frames):
            continue
        lines += ["", _head(thread, found), *(f"  {frame}" for frame in frames(thread, whole=whole))]
    lines += ["", *notes] if (notes := inspection.notes(found.stacks)) else []
    if found.silent:
        lines += ["", f"no answer from {', '.join(found.silent)}"]
    return "\n".join(lines)


def _head(thread: ThreadStack, found: Inspection) -> str:
    what = "main thread" if thread.main else "thread"
    stopped = [rank for rank in thread.ranks if (used := found.usage.get(str(rank))) and used.stopped]
    steps = sorted(
        {used.step for rank in thread.ranks if (used := found.usage.get(str(rank))) and used.step is not None}
    )
    many = len({used.step for used in found.usage.values()}) > 1
    at = f", step {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "") if many and steps and thread.main else ""
    return f"{ranks(thread.ranks)}: {what}{at}" + (" (stopped)" if stopped and thread.main else "")


def frames(thread: ThreadStack, *, whole: bool) -> list[str]:
    """The frames to show: without those of dtrain's start of the worker, and without where packages are installed."""
    if whole:
        return list(thread.frames)
    own = next((index for index, frame in enumerate(thread.frames) if START_UP.search(frame)), len(thread.frames))
    return [INSTALLED.sub('"', frame) for frame in thread.frames[: own or len(thread.frames)]]


def as_json(found: Inspection) -> JsonObject:
    """Convert the threads, and what each rank uses, to plain data."""
    threads = [
        to_dict(thread) | {"ranks": list(thread.ranks), "frames": list(thread.frames)}
        for thread in inspection.by_thread(found.stacks)
    ]
    return {
        "attempt": found.attempt, "time": found.time, "threads": threads,
        "ranks": {rank: to_dict(used) for rank, used in found.usage.items()}, "silent_nodes": list(found.silent),
    }  # fmt: skip
