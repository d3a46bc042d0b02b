"""Builds the event of a failed attempt: its cause, the errors of other ranks, and the end of the failing rank's log."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from dtrain.common.files import read_at
from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.record.events import FailureOccurred
from dtrain.record.folder import RunDir
from dtrain.record.inspection import THREAD
from dtrain.supervisor.outcome import Failed

MOST_LINES = 10
MOST_WIDTH = 300
MOST_BYTES = 1 << 16
MOST_MESSAGE = 160
"""Longest message of another rank."""
BEGIN = "--- dtrain: attempt "
"""Beginning of the line that starts an attempt in a log."""
TRACEBACK = "Traceback (most recent call last):"


def event_of(outcome: Failed, attempt: int, run: RunDir) -> FailureOccurred:
    """The event of a failed attempt; reads the end of a log."""
    failure = outcome.failure
    same, others = folded(failure, outcome.also)
    tail = "" if failure.rank is None else log_tail(run.rank_log(failure.rank), failure)
    return FailureOccurred(
        attempt=attempt, kind=failure.kind.value, rank=failure.rank, node=failure.node, step=failure.step, message=failure.message,
        where=failure.where, traceback=failure.traceback, code=failure.code, saved_step=failure.saved_step, same=same, others=others,
        log_tail=tail,
    )  # fmt: skip


def folded(cause: Failure, also: tuple[Failure, ...]) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    """Pure. The ranks with the same error as the cause, and what others reported with their ranks; each rank once."""
    same: set[int] = set()
    others: dict[str, set[int]] = defaultdict(set)
    known = {cause.rank}
    for one in also:
        if one.rank is None or one.rank in known:
            continue
        known.add(one.rank)
        if _key(one) == _key(cause):
            same.add(one.rank)
        else:
            lost = one.kind is FailureKind.CASCADE
            others["lost another worker" if lost else f"{one.kind.value}: {one.message[:MOST_MESSAGE]}"].add(one.rank)
    return tuple(sorted(same)), {text: tuple(sorted(ranks)) for text, ranks in others.items()}


def _key(failure: Failure) -> tuple[FailureKind, str, str]:
    """Equal for the same error: numbers (ranks, addresses, sizes) may differ."""
    return failure.kind, failure.where, re.sub(r"(0x[0-9a-f]+|[0-9]+)", "#", failure.message)


def log_tail(path: Path, failure: Failure) -> str:
    """The last lines that a rank wrote in its newest attempt, up to what is known anyway: the traceback, or the stacks of a hang."""
    try:
        size = path.stat().st_size
        text = read_at(path, max(0, size - MOST_BYTES), MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    begins = [number for number, line in enumerate(lines) if line.startswith(BEGIN)]
    lines = lines[begins[-1] + 1 :] if begins else lines
    lines = lines[: _end(lines, failure)]
    shown = [line[:MOST_WIDTH] for line in lines if line.strip() and not line.startswith("dtrain: ")]
    return "\n".join(shown[-MOST_LINES:])


def _end(lines: list[str], failure: Failure) -> int | None:
    """Where in a log the last words of its program end."""
    if failure.kind is FailureKind.HANG:
        return next((number for number, line in enumerate(lines) if THREAD.fullmatch(line)), None)
    if not failure.traceback:
        return None
    # An error that came from another one has two tracebacks: the first of those at the end.
    numbers = [
        number for number, line in enumerate(lines) if line.endswith(TRACEBACK)
    ]  # torch writes the rank before it
    return numbers[-failure.traceback.count(TRACEBACK) :][0] if numbers else None
