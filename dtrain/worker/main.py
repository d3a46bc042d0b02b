"""A worker: forked from the zygote, joins the strategy, runs the user's code, reports; one a rank."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from dtrain.api.reports import MOST_RANKS, StepsDone
from dtrain.api.strategy import (
    ERROR_FILE,
    RECORD_FILE,
    RECORD_PIPE,
    RankInfo,
    RendezvousInfo,
    Strategy,
    TrainingStrategy,
    WorkerContext,
)
from dtrain.common import environment as variables
from dtrain.common import hooks
from dtrain.common.errors import ClusterError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.message import Message
from dtrain.common.processes import die_with_parent, peak_resident_bytes, set_name
from dtrain.job import code, entrypoint, import_ways
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Job, shards_on
from dtrain.record import code_snapshot, collective_records
from dtrain.record.events import MemoryUsed
from dtrain.record.folder import RunDir
from dtrain.worker import failure_report, operation_log, python_process
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.debugger import Debugger

_kept: list[Any] = []
"""Objects that must not be freed before the process ends: freeing a DDP model joins gloo's threads with the GIL
held, which one of them may be waiting for (seen in torch 2.13, under any launcher)."""
FAILED = 1


@dataclass(frozen=True)
class Inheritance:
    """The things that a new worker gets from its zygote and from the request that it was forked for."""

    descriptors: tuple[int, ...]
    """The worker's end of the pipe to the agent and, if it is to serve the rendezvous, the socket reserved for that."""
    set_by_imports: dict[str, str]
    """Environment variables that the preloaded modules set."""


@dataclass(frozen=True)
class Assignment(Message):
    """The first message of an agent to a new worker: what it is to do."""

    run: str
    rank_info: RankInfo
    rendezvous: RendezvousInfo
    environment: dict[str, str]
    """Environment of the agent."""
    checkpoint: str | None
    """Name of the checkpoint to resume from."""
    step: int
    memory: str = ""
    """Folder of an in-memory checkpoint to resume from instead."""
    rolled_back: tuple[int, ...] = ()
    """Steps to go on without."""


def warm_up() -> None:
    """Do once, in the zygote, what every worker would do again."""
    from dtrain.launch import registry  # reading the entry points of all packages costs time that agents need not pay

    registry.installed("strategy")


def main(inheritance: Inheritance) -> int:
    """The whole life of a worker. Returns its exit code: 0, the user's own, 1 after a report, or minus a signal."""
    worker = os.getpid()
    os.setsid()
    die_with_parent(os.getppid())
    pipe, *sockets = inheritance.descriptors
    for descriptor in inheritance.descriptors:
        os.set_inheritable(descriptor, False)  # noqa: FBT003
    channel = ControlChannel(socket.socket(fileno=pipe))
    try:
        try:
            assignment: Assignment = channel.assignment()
            run, job, strategy = _set_up_process(assignment, inheritance)
        except EOFError:  # the agent is gone
            return FAILED
        except Exception as error:  # noqa: BLE001  of dtrain's, or of a file system: not of the user's code
            failure_report.send(channel, error, None, kind=FailureKind.CRASH)
            return FAILED
        listener = socket.socket(fileno=sockets[0]) if sockets else None
        return _run(run, job, strategy, assignment, channel, listener)
    finally:
        if os.getpid() == worker:  # and not a process that the user's code forked
            channel.close()


def _run(
    run: RunDir,
    job: Job,
    strategy: Strategy,
    assignment: Assignment,
    channel: ControlChannel,
    listener: socket.socket | None,
) -> int:
    """Run the user's code and report what ends it."""
    worker = os.getpid()
    debugger = Debugger(channel, job)
    debugger.install()
    try:
        _enter_code_folder(job)
        if snapshot := code_snapshot.opened(run.code, job.folder):
            code.install(snapshot)
        context = WorkerContext(
            assignment.rank_info,
            assignment.rendezvous,
            _with_shards(job, assignment.rank_info),
            listener,
            assignment.rolled_back,
        )
        with _serving(strategy, context):
            if job.kind == "script":
                _run_script(job, listener)
            else:
                _train(run, strategy, context, channel, assignment, debugger)
                if assignment.rank_info.rank < MOST_RANKS:
                    channel.report(_memory(strategy, channel.rank))
                channel.report(StepsDone())
    except BaseException as error:
        if os.getpid() != worker:
            raise
        if isinstance(error, SystemExit) and job.kind == "script":
            return _exit_code(error)
        if isinstance(error, KeyboardInterrupt):
            failure_report.show(error, job)
            return -signal.SIGINT
        debugger.on_exception(error)
        explanation = import_ways.explained(error, job) or strategy.explain(error)
        file = run.error_file(assignment.rank_info.rank)
        failure_report.send(channel, error, job, strategy=strategy, explanation=explanation, error_file=file)
        return FAILED
    return 0


def _memory(strategy: Strategy, rank: int) -> MemoryUsed:
    """The most that this process has taken so far."""
    return MemoryUsed(rank=rank, bytes=peak_resident_bytes(), device_bytes=strategy.peak_device_memory())


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return FAILED


def _with_shards(job: Job, rank_info: RankInfo) -> Job:
    """The job with the number of shards that this attempt's workers make necessary."""
    if job.kind == "script":
        return job
    shards = shards_on(job.train, rank_info.world_size * rank_info.replicas)
    return dataclasses.replace(job, train=dataclasses.replace(job.train, shards=shards))


def _set_up_process(assignment: Assignment, inheritance: Inheritance) -> tuple[RunDir, Job, Strategy]:
    """Turn a copy of the zygote into an ordinary Python process with its own output, signals and environment."""
    run, rank_info = RunDir(Path(assignment.run)), assignment.rank_info
    set_name(f"dtrain-rank-{rank_info.rank}")
    python_process.restore(run.rank_log(rank_info.rank))
    job = run.job()
    if job.kind != "script":
        signal.signal(signal.SIGTERM, _unless_worker(os.getpid()))
    from dtrain.launch import registry

    strategy = registry.strategy(job.strategy.name, job.strategy.options)
    os.environ.clear()
    os.environ.update(assignment.environment | inheritance.set_by_imports)
    for name in (variables.HOOKS, variables.OPERATIONS):
        os.environ.pop(name, None)
    os.environ.update(_environment(run, job, strategy, assignment) | job.env)
    if job.resources.numa:
        from dtrain.worker import cpu_binding

        print(f"dtrain: {cpu_binding.bind(rank_info, on_gpus=job.resources.device == 'gpu')}")
    hooks.install(
        assignment.environment.get(variables.HOOKS, ""), run=run, rank=rank_info.rank, attempt=assignment.rendezvous.attempt,
        first_step=assignment.step,
    )  # fmt: skip
    logged = assignment.environment.get(variables.OPERATIONS, "")
    operation_log.begin(logged, run, rank_info.rank, assignment.rendezvous.attempt)
    print(
        f"--- dtrain: attempt {assignment.rendezvous.attempt}, rank {rank_info.rank}, from step {assignment.step} ---"
    )
    return run, job, strategy


def _environment(run: RunDir, job: Job, strategy: Strategy, assignment: Assignment) -> dict[str, str]:
    """Return the variables that tell this process its rank: the strategy's and dtrain's own three."""
    rank_info, rendezvous = assignment.rank_info, assignment.rendezvous
    error_file = run.error_file(rank_info.rank)
    error_file.unlink(missing_ok=True)
    told = strategy.environment(rank_info, rendezvous)
    meant = {ERROR_FILE: str(error_file)}
    if job.resources.device == "gpu":
        told |= strategy.gpu_environment()
        meant |= _records(run, rendezvous.attempt)
    told = {name: meant.get(value, value) for name, value in told.items() if value != RECORD_PIPE or value in meant}
    own = {
        variables.RUN: rendezvous.run_id,
        variables.ATTEMPT: str(rendezvous.attempt),
        variables.RANK: str(rank_info.rank),
    }
    return told | own | ({"PWD": job.folder} if "PWD" in os.environ else {})


def _records(run: RunDir, attempt: int) -> dict[str, str]:
    """Return where the strategy's framework leaves its record of collectives, and the pipe that asks for it if there can be one."""
    found = {RECORD_FILE: str(collective_records.file_prefix(run, attempt))}
    with suppress(OSError):
        found[RECORD_PIPE] = str(collective_records.pipe_prefix(run, attempt))
    return found


def _enter_code_folder(job: Job) -> None:
    """Change to the recipe's folder; raises `ClusterError` if that is not on this node."""
    folder = job.folder
    try:
        os.chdir(folder)
    except OSError as error:
        raise ClusterError(
            f"the recipe's folder {folder} is not on {socket.gethostname()}: {error.strerror}",
            "Put it on a file system that all nodes share; on Ray, storage.url has it sent along.",
        ) from None
    entrypoint.enter(job, folder)
    python_process.started_in(folder)


def _unless_worker(worker: int) -> Any:
    """A SIGTERM handler that leaves the worker alone (its supervisor asks it to save and leave) but not its children."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != worker:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handle


def _run_script(job: Job, listener: socket.socket | None) -> None:
    """The user's program, which binds its rendezvous port itself."""
    from dtrain.worker import user_script

    hooks.before_script()
    if listener is not None:
        listener.close()
    _kept.append(user_script.run(job))


def _serving(strategy: Strategy, context: WorkerContext) -> AbstractContextManager[None]:
    return strategy.serve(context) if context.rank_info.rank == 0 else nullcontext()


def _train(
    run: RunDir,
    strategy: Strategy,
    context: WorkerContext,
    channel: ControlChannel,
    assignment: Assignment,
    debugger: Debugger,
) -> None:
    """A task or a function, under the job's strategy."""
    from dtrain.common import allocator
    from dtrain.worker import loop

    allocator.keep_freed_memory(os.environ)
    assert isinstance(strategy, TrainingStrategy), "the plan refuses others"
    hooks.reach("rendezvous")
    with strategy.join(context) as backend:
        _kept.append(backend)
        loop.run(run, context, backend, channel, debugger, assignment.checkpoint, assignment.step, assignment.memory)
