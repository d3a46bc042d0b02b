"""The agent of one node: starts the node's workers, watches them, stops whole process groups, reports.

It never imports a framework: the zygote does. When the link to the supervisor closes, it ends everything it started.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import time
from collections import deque
from functools import partial
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from dtrain.agent import devices
from dtrain.agent.device_memory import DeviceMemory
from dtrain.agent.fork_server import Broken, Ended, ForkRefused, ForkServer
from dtrain.agent.heartbeat import Pulse
from dtrain.agent.inspector import Inspector
from dtrain.agent.link import SupervisorLink
from dtrain.agent.memory.node_memory import NodeMemory
from dtrain.agent.preflight import Preflight
from dtrain.agent.usage_meter import UsageMeter
from dtrain.agent.worker_pipe import BadReport, WorkerPipe
from dtrain.agent.worker_process import WorkerProcess
from dtrain.api import reports
from dtrain.api.memory_protocol import WriteMemory
from dtrain.api.protocol import (
    TAG,
    AgentReady,
    CheckNode,
    CheckPeers,
    Command,
    DumpStacks,
    Heartbeat,
    Inspect,
    PortsReserved,
    Quit,
    ReservePorts,
    SetJob,
    StartWorkers,
    StopWorkers,
    WorkerCommand,
    WorkerExited,
    WorkerReport,
)
from dtrain.common import environment as variables
from dtrain.common.memory import oom_kills
from dtrain.common.message import tagged
from dtrain.common.processes import STACKS_SIGNAL, alive, catches
from dtrain.job.failure_kinds import FailureKind
from dtrain.record import collective_records, sample_ledger
from dtrain.record.events import StepsProfiled, UserWarned, WorkersStarted
from dtrain.record.folder import RunDir
from dtrain.worker import failure_report
from dtrain.worker.main import Assignment

if TYPE_CHECKING:  # few agents need one
    from dtrain.agent.node_run_folder import NodeRunFolder

CLOSED_GRACE_SECONDS = 5.0
FETCHING_SECONDS = 0.01
"""Between two looks whether an in-memory checkpoint has come from other nodes."""


class Agent:
    """The loop of one node."""

    def __init__(
        self,
        run: RunDir,
        private: NodeRunFolder | None,
        node: str,
        *,
        beat_seconds: float,
        commands: int,
        events: int,
        zygote: ForkServer,
    ) -> None:
        self._run = run
        self._private = private
        """Where this node does not see the run folder."""
        self._node = node
        self._beat_seconds = beat_seconds
        self._link = SupervisorLink(node, commands, events)
        self._workers: dict[int, WorkerProcess] = {}
        self._attempt = 0
        self._keep_log_bytes = 0
        self._ports: list[socket.socket] = []
        self._kill_at: float | None = None
        self._waiting: deque[StartWorkers] = deque()
        self._zygote = zygote
        self._late = False
        """Whether the supervisor has given up waiting for the zygote's imports."""
        self._pulse = Pulse(self._link.send, beat_seconds, commands, partial(os._exit, 1))
        self._meter = UsageMeter()
        written = private.written if private else lambda _: ()
        self._inspector = Inspector(run, node, self._meter, self._link.send, written)
        self._memory = NodeMemory(run, node, self._link.send)
        self._device_memory = DeviceMemory(self._warn)
        self._preflight = Preflight(run, node, self._link.send)

    def serve(self) -> None:
        """Work until told to quit or left alone."""
        address = devices.address()
        self._link.send(
            AgentReady(socket.gethostname(), address, devices.cpus(), devices.gpus(), os.getpid(), not self._private)
        )
        self._pulse.start()
        self._meter.start()
        look_at = time.monotonic() + self._beat_seconds
        while not self._link.closed:
            deadline = min(look_at, self._kill_at or look_at, self._inspector.look_at or look_at)
            self._poll(max(0.0, deadline - time.monotonic()))
            self._inspector.poll()
            now = time.monotonic()
            if self._kill_at and now >= self._kill_at:
                self._kill_at = None
                self._signal(signal.SIGKILL)
            if now >= look_at:
                look_at = now + self._beat_seconds
                signs = {str(rank): one.look(now) for rank, one in self._workers.items()}
                self._pulse.renew(Heartbeat(self._attempt, signs, usage=self._meter.take()))
                self._send_what_grew()
                for rank, one in self._workers.items():
                    self._shorten_log(rank, one)
                self._memory.look()
        self._pulse.stop()
        self._meter.stop()
        self._preflight.end()
        self._end()

    def _send_what_grew(self) -> None:
        for piece in self._private.grown() if self._private else ():
            self._link.send(piece)
            if self._link.broken:
                return

    def _shorten_log(self, rank: int, one: WorkerProcess) -> None:
        """After what was added to it was sent."""
        if report := one.shorten_log(self._keep_log_bytes):
            self._send_report(rank, report)

    def _poll(self, timeout: float) -> None:
        pipes: dict[Any, int] = {one.pipe: rank for rank, one in self._workers.items() if not one.pipe.closed}
        sources: list[Any] = [self._link.commands, *pipes, *([] if self._zygote.broken else [self._zygote])]
        fetching = self._waiting and not self._ready()
        sent = [one.pipe.flush() for one in self._workers.values()]
        ready = wait(sources, min(timeout, FETCHING_SECONDS) if fetching or not all(sent) else timeout)
        for source in ready:
            if source in pipes:
                self._drain_pipe(pipes[source])
        self._hear_zygote()
        if self._link.commands in ready:
            for command in self._link.read():
                self._handle_command(command)
        while (self._zygote.warm or self._zygote.broken) and self._waiting and self._ready():
            self._fork(self._waiting.popleft())
            self._hear_zygote()

    def _ready(self) -> bool:
        """Return whether the next workers have what they begin with."""
        return self._memory.ready(self._waiting[0]) and self._device_memory.ready()

    def _hear_zygote(self) -> None:
        for event in self._zygote.hear():
            if isinstance(event, Ended):
                rank = next((rank for rank, one in self._workers.items() if one.pid == event.pid), None)
                if rank is not None:
                    self._reap(rank, event.code)
            elif self._workers:
                self._lose_workers(event)

    def _lose_workers(self, broken: Broken) -> None:
        """The zygote is gone, and its workers, which die with it, have nobody to tell how they ended."""
        for rank, one in list(self._workers.items()):
            one.process.send_to_group()
            self._drain_pipe(rank)
            if not one.reported:
                self._report(rank, FailureKind.CRASH, broken.reason)
        deadline = time.monotonic() + CLOSED_GRACE_SECONDS
        while any(alive(one.pid) for one in self._workers.values()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for rank in list(self._workers):
            self._reap(rank, -signal.SIGKILL)

    def _report(self, rank: int, kind: FailureKind, message: str, traceback: str = "") -> None:
        """Say in the place of a worker why it fails."""
        self._send_report(rank, reports.WorkerFailed(kind.value, message, traceback))

    def _warn(self, text: str) -> None:
        self._link.send(WorkerReport(self._attempt, self._waiting[0].ranks[0].rank, tagged(UserWarned(text=text), TAG)))

    def _send_report(self, rank: int, report: reports.Report) -> None:
        self._link.send(WorkerReport(self._attempt, rank, tagged(report, TAG)))

    def _handle_command(self, command: Command) -> None:
        if isinstance(command, Quit):
            self._link.closed = self._link.quit = True
        elif isinstance(command, SetJob):
            self._adopt(command)
        elif isinstance(command, CheckNode | CheckPeers):
            self._preflight.begin(command)
        elif isinstance(command, ReservePorts):
            self._listen(command)
        elif isinstance(command, StartWorkers):
            self._attempt, self._keep_log_bytes = command.attempt, command.keep_log_bytes
            self._waiting.append(command)
            self._memory.begin(command)
            self._device_memory.begin(command)
        elif isinstance(command, WriteMemory):
            self._memory.write(command)
        elif command.attempt != self._attempt:
            return
        elif isinstance(command, StopWorkers):
            while self._waiting:
                for rank_info in self._waiting.popleft().ranks:
                    self._link.send(
                        WorkerExited(command.attempt, rank_info.rank, -signal.SIGKILL, None, out_of_memory=False)
                    )
            self._signal(signal.SIGTERM if command.grace_seconds else signal.SIGKILL)
            self._kill_at = time.monotonic() + command.grace_seconds if command.grace_seconds else None
        elif isinstance(command, DumpStacks):
            if self._waiting:
                self._zygote.show_stacks()
                self._late = True
            # A stopped process cannot handle the signal that asks for its stacks: wake it.
            self._signal(STACKS_SIGNAL)
            self._signal(signal.SIGCONT)
        elif isinstance(command, Inspect):
            self._inspector.begin(command, self._workers)
        elif isinstance(command, WorkerCommand):
            for one in self._workers.values():
                one.pipe.send(command)

    def _adopt(self, command: SetJob) -> None:
        """The job of a run folder that this node does not see; its variables must be there before a framework is imported."""
        if self._private:
            self._private.adopt(command.job, base64.b64decode(command.code))
            environment = self._zygote.environment | self._run.job().env
            if environment != self._zygote.environment:
                self._zygote = self._zygote.again(environment)

    def _listen(self, command: ReservePorts) -> None:
        """Bind, but do not listen: with SO_REUSEADDR on both sides the worker's framework can bind the same port,
        while the kernel gives it to nobody who asks for just any port."""
        self._close_ports()
        self._attempt = command.attempt
        if self._zygote.broken or (self._late and not self._zygote.warm):
            self._zygote = self._zygote.again()
        self._late = False
        for _ in range(command.workers):
            port = socket.socket()
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind((devices.address(), 0))
            self._ports.append(port)
        memory_port = self._memory.listen(devices.address(), command.memory_key)
        self._link.send(
            PortsReserved(command.attempt, tuple(port.getsockname()[1] for port in self._ports), memory_port)
        )

    def _fork(self, start: StartWorkers) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in variables.OF_AGENTS}
        if interface := devices.interface(devices.address()):
            environment[variables.INTERFACE] = interface
        refused: dict[int, str] = {}
        for rank_info in start.ranks:
            try:
                assignment = Assignment(
                    str(self._run.path), rank_info, start.rendezvous, environment, start.checkpoint, start.step,
                    self._memory.folder(start), start.rolled_back,
                )  # fmt: skip
                self._workers[rank_info.rank] = self._forked(start.attempt, assignment)
            except (ForkRefused, OSError) as error:
                refused[rank_info.rank] = str(error)
        pids = {str(rank): one.pid for rank, one in self._workers.items()}
        self._link.send(WorkersStarted(attempt=start.attempt, node=self._node, pids=pids))
        broken = self._zygote.broken
        for rank, reason in refused.items():
            if broken and broken.module:
                self._report(rank, FailureKind.SETUP, broken.reason, broken.traceback)
            else:
                self._report(rank, FailureKind.CRASH, reason)
            self._link.send(WorkerExited(start.attempt, rank, 1, None, out_of_memory=False))

    def _forked(self, attempt: int, assignment: Assignment) -> WorkerProcess:
        rank_info = assignment.rank_info
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = [
                theirs.fileno(),
                *([self._ports[rank_info.local_rank].fileno()] if rank_info.rank == 0 else []),
            ]
            try:
                pid = self._zygote.fork(descriptors)
            except ForkRefused:
                ours.close()
                raise
        pipe = WorkerPipe(ours)
        pipe.send(assignment)
        log, record = self._run.rank_log(rank_info.rank), self._run.ledger(attempt, rank_info.rank)
        return WorkerProcess(rank_info, pid, pipe, log, record, oom_kills())

    def _drain_pipe(self, rank: int) -> None:
        """Pass on a worker's reports. One that sends anything else is killed, and fails alone."""
        one = self._workers[rank]
        try:
            received = one.pipe.reports()
        except BadReport as error:
            received = error.before
            if not one.reported:
                self._report(rank, FailureKind.CRASH, f"rank {rank}: {error}")
            one.reported = True
            one.process.send_to_group()
        for body, report in received:
            if isinstance(report, reports.MemoryOffered):
                self._memory.offer(self._attempt, rank, one.pid, report)
                continue
            one.reported |= isinstance(report, reports.WorkerFailed)
            if self._private and isinstance(report, StepsProfiled) and report.file:
                for piece in self._private.written(report.file):
                    self._link.send(piece)
            if isinstance(report, reports.ShardWritten):
                self._send_what_grew()  # the ledger arrives before the checkpoint that it explains
            self._link.send(WorkerReport(self._attempt, rank, body))

    def _reap(self, rank: int, code: int) -> None:
        self._drain_pipe(rank)
        one = self._workers.pop(rank)
        one.process.close()
        collective_records.forget(self._run, self._attempt, rank)
        if code and not one.reported and (report := failure_report.from_error_file(self._run.error_file(rank))):
            self._send_report(rank, report)
        step = sample_ledger.last_step(one.ledger)
        killed_for_memory = oom_kills() > one.oom_kills
        self._send_what_grew()
        self._shorten_log(rank, one)
        self._memory.exited(rank, code)
        if not self._workers:
            self._memory.ended()
        self._link.send(WorkerExited(self._attempt, rank, code, step, killed_for_memory))
        one.pipe.close()
        if not self._workers:
            self._close_ports()
            self._kill_at = None

    def _signal(self, number: int) -> None:
        for one in self._workers.values():
            if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGCONT):
                one.process.send_to_group(number)
            elif number != STACKS_SIGNAL or catches(one.pid, number):  # it would kill a program that does not expect it
                one.process.send(number)

    def _close_ports(self) -> None:
        for port in self._ports:
            port.close()
        self._ports.clear()

    def _end(self) -> None:
        """Kill the workers' groups and wait for them; the zygote follows when this process is gone."""
        self._signal(signal.SIGKILL)
        deadline = time.monotonic() + CLOSED_GRACE_SECONDS
        while self._workers and time.monotonic() < deadline and not self._zygote.broken:
            wait([self._zygote.fileno()], max(0.0, deadline - time.monotonic()))
            self._hear_zygote()
        self._memory.close()
        self._send_what_grew()
        if self._private and self._link.quit and not self._link.broken:
            self._private.remove()
