"""A worker: forked from the zygote, joins the strategy, runs the user's code, reports; one a rank."""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import signal
import socket
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from dtrain.api.strategy import NeedsService, RankInfo, RendezvousInfo, Strategy, TrainingStrategy, WorkerContext
from dtrain.common.errors import ClusterError, DtrainError, StorageError, UserError
from dtrain.common.processes import die_with_parent, set_name
from dtrain.run.folder import RunDir
from dtrain.spec.failures import FailureKind, exception_kind
from dtrain.spec.job import Job
from dtrain.worker.control_channel import ControlChannel

_kept: list[Any] = []
"""What must not be freed before the process ends: freeing a DDP model joins gloo's threads with the GIL held, which one of
them may be waiting for (seen in torch 2.13, under any launcher)."""
STACKS_SIGNAL = signal.SIGQUIT
FAILED = 1


@dataclass(frozen=True)
class Assignment:
    """What an agent gives a new worker."""

    run: str
    place: RankInfo
    peers: RendezvousInfo
    environment: dict[str, str]
    checkpoint: str | None
    """Its name, to resume from."""
    step: int


def nothing() -> None:
    """The zygote's first child, by which the agent sees that it is warm."""


def main(assignment: Assignment, pipe: Connection, rendezvous: socket.socket | None) -> None:
    """The whole life of a worker; its exit code is 0, the user's own, or 1 after a report."""
    run = RunDir(Path(assignment.run))
    job = run.job()
    _set_up_process(run, assignment, job)
    link = ControlChannel(pipe, assignment.step)
    code = FAILED
    try:
        _enter_code_folder(job.folder)
        from dtrain.launch import registry  # importlib.metadata costs time that agents need not pay

        strategy = registry.strategy(job.strategy.name, job.strategy.options)
        joining = WorkerContext(assignment.place, assignment.peers, job, rendezvous)
        with _serving(strategy, joining):
            if job.kind == "script":
                run_script(job)
            else:
                train(run, strategy, joining, link, assignment)
        code = 0
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException as error:  # noqa: BLE001  the report of whatever ends the user's code is the point
        report(link, error, job)
    finally:
        with suppress(Exception):
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        link.close()
        os._exit(code)


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return FAILED


def _set_up_process(run: RunDir, assignment: Assignment, job: Job) -> None:
    """From a copy of the zygote to a process of its own, with its own session, output, signals and environment."""
    zygote = os.getppid()
    os.setsid()
    die_with_parent(zygote)
    rank = assignment.place.rank
    set_name(f"dtrain-rank-{rank}")
    _forget_the_zygote()
    gc.freeze()
    gc.enable()
    log = os.open(run.rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Block-buffered output would lose the last lines of a killed worker.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if job.kind == "script" else _unless_worker(os.getpid()))
    faulthandler.enable(file=2, all_threads=True)
    faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)
    atexit._clear()
    os.environ.update(assignment.environment)
    os.environ.update(job.env)
    print(f"--- dtrain: attempt {assignment.peers.attempt}, rank {rank}, from step {assignment.step} ---")


def _enter_code_folder(folder: str) -> None:
    """Work where the recipe lies; raises `ClusterError` where that is not on this node."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise ClusterError(
            f"the recipe's folder {folder} is not on {socket.gethostname()}: {error.strerror}",
            "Put it on a file system that all nodes share; on Ray, storage.url has it sent along.",
        ) from None
    sys.path.insert(0, folder)


def _unless_worker(worker: int) -> Any:
    """A SIGTERM handler that leaves the worker alone (its supervisor asks it to save and leave) but not its children."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != worker:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handle


def _forget_the_zygote() -> None:
    """Close the copy of the alive pipe, so that the zygote notices the agent's end, and let the user's own
    forkserver, if there is one, be a new one."""
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = server._forkserver_address = server._forkserver_pid = None


def run_script(job: Job) -> None:
    """A Python file in this process, as if it had been started by itself; any other program in its place."""
    import runpy
    import shutil

    script = Path(job.folder) / str(job.script)
    arguments = [str(part) for part in job.args]
    if script.suffix == ".py":
        sys.argv = [str(script), *arguments]
        sys.path[0] = str(script.parent)
        _kept.append(runpy.run_path(str(script), run_name="__main__"))
        return
    program = str(script) if script.is_file() else shutil.which(str(job.script)) or str(job.script)
    os.execvp(program, [str(job.script), *arguments])


def _serving(strategy: Strategy, joining: WorkerContext) -> AbstractContextManager[None]:
    return strategy.serve(joining) if isinstance(strategy, NeedsService) and joining.place.rank == 0 else nullcontext()


def train(
    run: RunDir, strategy: Strategy, joining: WorkerContext, link: ControlChannel, assignment: Assignment
) -> None:
    """A task or a function, under the job's strategy."""
    from dtrain.worker import loop

    assert isinstance(strategy, TrainingStrategy), "the plan refuses others"
    with strategy.join(joining) as session:
        _kept.append(session)
        loop.run(run, joining, session, link, assignment.checkpoint, assignment.step)


def report(link: ControlChannel, error: BaseException, job: Job) -> None:
    """Tell the supervisor what ended the user's code, and leave the traceback in the log too."""
    text = "".join(traceback.format_exception(error))
    names = [base.__name__ for base in type(error).__mro__]
    message = " ".join(str(error).split()) or type(error).__name__
    ours = isinstance(error, DtrainError)
    kind = FailureKind.SETUP if ours else exception_kind(names, message)
    if isinstance(error, UserError):
        kind = FailureKind.BUG
    if isinstance(error, StorageError):
        kind = FailureKind.TRANSIENT
    # Where another worker ended, this one's traceback only hides the cause.
    brief = {FailureKind.CASCADE: f"dtrain: lost another worker: {message}\n", FailureKind.SETUP: f"dtrain: {error}\n"}
    if isinstance(error, UserError):
        brief[kind] = f"dtrain: {error}\n"
    print(brief.get(kind, text), file=sys.stderr, end="")
    link.say(
        "failed",
        message=message if ours else f"{names[0]}: {message}"[:2000],
        failure=kind.value,
        traceback="" if ours else text[-20000:],
        where="" if ours else _where(error, job),
        exit_code=int(error.exit_code) if isinstance(error, DtrainError) else FAILED,
    )


def _where(error: BaseException, job: Job) -> str:
    """The innermost frame in the user's folder, or the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(job.folder + os.sep)] or frames[-1:]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}" if own else ""
