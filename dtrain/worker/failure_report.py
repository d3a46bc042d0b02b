"""Reports the error that ends a worker: its class, one line, and the traceback with the user's frames alone."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from dtrain.api.reports import WorkerFailed
from dtrain.api.strategy import Strategy, error_kind
from dtrain.common import gpu, source_files
from dtrain.common.errors import AnotherRankFailed, DtrainError, StorageError, UserError, notes_of
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Job
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.users_code import UsersCode

MOST_MESSAGE = 1000
MOST_QUOTED = 120
DEVICE_ADVICE = "see nvidia-smi -q -d ECC,PAGE_RETIREMENT and dmesg for Xid"
"""Of an error that is explained."""
MOST_TRACEBACK = 20_000
RUNNERS = (
    importlib.__file__,
    "<frozen runpy>",
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
)


def send(
    channel: ControlChannel,
    error: BaseException,
    job: Job | None,
    *,
    kind: FailureKind | None = None,
    strategy: Strategy | None = None,
    explanation: str = "",
    error_file: Path | None = None,
) -> None:
    """Tell the supervisor what ended the user's code, with what the strategy knows of it, and leave the traceback in the log. Where the user's
    code has closed the control channel, `error_file` brings it to the agent."""
    names = [base.__name__ for base in type(error).__mro__]
    message = " ".join(str(error).split()) or names[0]
    if notes := notes_of(error):
        message = f"{message} ({'; '.join(notes)})"
    ours = isinstance(error, DtrainError)
    kind = kind or (FailureKind.SETUP if ours or strategy is None else error_kind(strategy, names, message))
    if isinstance(error, UserError):
        kind = FailureKind.BUG
    if isinstance(error, AnotherRankFailed):
        kind = FailureKind.CASCADE
    if isinstance(error, StorageError):
        kind = FailureKind.TRANSIENT
    if isinstance(error, SystemExit):
        kind, message = FailureKind.BUG, f"the code called sys.exit({error.code!r}) before the run's steps were done"
    # Where another worker ended, this one's traceback only hides the cause.
    if kind is FailureKind.CASCADE:
        print(f"dtrain: lost another worker: {message}", file=sys.stderr)
    elif ours:
        print(f"dtrain: {error}", file=sys.stderr)
    else:
        show(error, job)
    if not ours and not isinstance(error, SystemExit):
        message = f"{names[0]}: {message}"
    if explanation:
        print(f"dtrain: {explanation}", file=sys.stderr)
        message = f"{explanation} ({message[:MOST_QUOTED]})"
    if kind is FailureKind.DEVICE:
        name = gpu.name_of(int(os.environ.get("LOCAL_RANK", "0")))
        message = f"{name} or its driver failed, not the code: {message[:MOST_QUOTED]} ({DEVICE_ADVICE})"
        print(f"dtrain: {message}", file=sys.stderr)
    report = WorkerFailed(
        failure=kind.value,
        message=message[:MOST_MESSAGE],
        traceback="" if ours else users_traceback(error, job),
        where="" if ours else _where(error, job),
        exit_code=int(error.exit_code) if isinstance(error, DtrainError) else 1,
    )
    if channel.connected or error_file is None:
        channel.report(report)
    else:
        told = {"message": report.message, "extraInfo": {"py_callstack": report.traceback}}
        error_file.write_text(json.dumps({"message": told}))


def show(error: BaseException, job: Job | None) -> None:
    """Print a script's error as Python does, through the program's own hook if it has one; a task's with all its frames."""
    if job is None or job.kind != "script":
        traceback.print_exception(error)
        return
    error.__traceback__ = _below_ours(error.__traceback__)
    sys.excepthook(type(error), error, error.__traceback__)


def from_error_file(path: Path) -> WorkerFailed | None:
    """Read TORCHELASTIC_ERROR_FILE (torch.distributed.elastic's `record`), in which a program that is no Python
    script of ours left its error; None if there is nothing to read."""
    try:
        told = json.loads(path.read_text())["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    detailed = told if isinstance(told, dict) else {"message": told}
    message = " ".join(str(detailed.get("message", "")).split())
    extra = detailed.get("extraInfo")
    text = str(extra.get("py_callstack", "")) if isinstance(extra, dict) else ""
    return WorkerFailed("", message[:MOST_MESSAGE], text[-MOST_TRACEBACK:])


def _below_ours(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of dtrain and of Python's own machinery that called the user's program."""
    inner = trace
    while inner is not None and _is_ours(inner.tb_frame.f_code.co_filename):
        inner = inner.tb_next
    return inner


def _is_ours(filename: str) -> bool:
    return source_files.is_ours(filename) or filename in RUNNERS


def users_traceback(error: BaseException, job: Job | None) -> str:
    """The traceback with the user's frames alone, or without dtrain's if there are none; the log has all of them."""
    told = traceback.TracebackException.from_exception(error)
    for part in _chain(told):
        frames = _users_frames(list(part.stack), job)
        part.stack[:] = frames
    return "".join(told.format())[-MOST_TRACEBACK:]


def _chain(told: traceback.TracebackException | None) -> Iterator[traceback.TracebackException]:
    """An exception, and those that it came from."""
    if told is not None:
        yield told
        yield from _chain(told.__cause__)
        yield from _chain(told.__context__)


def _users_frames(frames: list[traceback.FrameSummary], job: Job | None) -> list[traceback.FrameSummary]:
    users = UsersCode(job) if job else ()
    own = [frame for frame in frames if frame.filename in users]
    return own or [frame for frame in frames if not _is_ours(frame.filename)]


def _where(error: BaseException, job: Job | None) -> str:
    """The innermost of the user's frames."""
    frames = _users_frames(list(traceback.extract_tb(error.__traceback__)), job)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
