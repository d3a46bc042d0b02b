"""The agent of one node: starts the node's workers, watches them, stops whole process groups, reports.

It speaks JSON lines over stdin and stdout (see `dtrain.api.protocol`) and never imports a framework: the zygote does.
When its stdin closes, nobody is there any more to work for, and it ends everything it started.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.agent import devices
from dtrain.api.protocol import (  # fmt: skip
    AgentReady,
    Command,
    DumpStacks,
    Event,
    Heartbeat,
    PortsReserved,
    Quit,
    ReservePorts,
    SetJob,
    StartWorkers,
    StopWorkers,
    WorkerCommand,
    WorkerExited,
    WorkerLiveness,
    WorkerReport,
    WorkersStarted,
    decode,
    encode,
    fragments,
)
from dtrain.api.strategy import RankInfo
from dtrain.common.processes import kill_group, oom_kills, usage
from dtrain.run import sample_ledger
from dtrain.run.folder import RunDir
from dtrain.worker import main

if TYPE_CHECKING:  # few agents need one
    from dtrain.agent.node_run_folder import NodeRunFolder

LINE_BYTES = "DTRAIN_LINE_BYTES"
"""The longest line that is carried whole to the supervisor, where that has a limit."""
IDLE_CPU_SHARE = 0.02
CLOSED_GRACE_SECONDS = 5.0


@dataclass
class WorkerProcess:
    """One running worker and when it last showed a sign of life."""

    place: RankInfo
    process: ForkServerProcess
    pipe: Connection
    log: Path
    ledger: Path
    oom_kills: int
    looked: float = 0.0
    cpu_seconds: float = 0.0
    output: int = -1
    step: int | None = None
    active: float = 0.0
    stopped_since: float | None = None

    @property
    def pid(self) -> int:
        """Of the worker, which leads a process group of the same number."""
        return int(self.process.pid or 0)

    def look(self, now: float) -> WorkerLiveness:
        """Compare with the last look: a step, output or CPU time is a sign of life."""
        current = usage(self.pid)
        output = self.log.stat().st_size if self.log.exists() else 0
        step = sample_ledger.last_step(self.ledger)
        cpu = current.cpu_seconds if current else 0.0
        busy = cpu - self.cpu_seconds > IDLE_CPU_SHARE * (now - self.looked)
        if busy or output != self.output or step != self.step or not self.active:
            self.active = now
        stopped = bool(current and current.stopped)
        self.stopped_since = (self.stopped_since or now) if stopped else None
        self.looked, self.cpu_seconds, self.output, self.step = now, cpu, output, step
        return WorkerLiveness(
            step, round(now - self.active, 2), round(now - self.stopped_since, 2) if self.stopped_since else 0.0
        )


def first_fork() -> None:
    """Have the zygote fork once: that ends when what it preloads is imported."""
    process = multiprocessing.get_context("forkserver").Process(target=main.nothing)
    process.start()
    process.join()


class Agent:
    """The loop of one node; single-threaded but for the zygote's warm-up."""

    def __init__(
        self,
        run: RunDir,
        private: NodeRunFolder | None,
        node: str,
        *,
        beat_seconds: float,
        commands: int,
        events: int,
        warm: bool,
    ) -> None:
        self.run = run
        self._private = private
        """Where this node does not see the run folder."""
        self.node = node
        self.beat_seconds = beat_seconds
        self._commands = commands
        self._events = events
        self._buffer = b""
        self._closed = False
        self._told_to_quit = False
        self._broken = False
        self._workers: dict[int, WorkerProcess] = {}
        self._attempt = 0
        self._ports: list[socket.socket] = []
        self._kill_at: float | None = None
        self._waiting: deque[StartWorkers] = deque()
        self._warm_pipe, self._warm_done = os.pipe()
        self._warm = warm
        self._line_bytes = int(os.environ.get(LINE_BYTES, 0))
        self._context = multiprocessing.get_context("forkserver")

    def send(self, event: Event) -> None:
        """One line up; where nobody reads any more, the end of stdin is about to say so."""
        line = encode(event, self.node)
        try:
            for data in fragments(line, self.node, self._line_bytes or len(line)):
                while data:
                    data = data[os.write(self._events, data) :]
        except BrokenPipeError:
            self._closed = self._broken = True

    def _warm_up(self) -> None:
        def answer() -> None:
            first_fork()
            os.write(self._warm_done, b".")

        threading.Thread(target=answer, name="warm-up", daemon=True).start()

    def serve(self) -> None:
        """Work until told to quit or left alone."""
        if not self._warm:
            self._warm_up()
        address = devices.address()
        self.send(
            AgentReady(socket.gethostname(), address, devices.cpus(), devices.gpus(), os.getpid(), not self._private)
        )
        beat_at = time.monotonic() + self.beat_seconds
        while not self._closed:
            deadline = min(beat_at, self._kill_at or beat_at)
            self._poll(max(0.0, deadline - time.monotonic()))
            now = time.monotonic()
            if self._kill_at and now >= self._kill_at:
                self._kill_at = None
                self._signal(signal.SIGKILL)
            if now >= beat_at:
                beat_at = now + self.beat_seconds
                self.send(Heartbeat(self._attempt, {str(rank): one.look(now) for rank, one in self._workers.items()}))
                self._send_what_grew()
        self._end()

    def _send_what_grew(self) -> None:
        for piece in self._private.grown() if self._private else ():
            self.send(piece)
            if self._broken:
                return

    def _poll(self, timeout: float) -> None:
        pipes = {one.pipe: rank for rank, one in self._workers.items() if not one.pipe.closed}
        sentinels = {one.process.sentinel: rank for rank, one in self._workers.items()}
        sources: list[Any] = [self._commands, *pipes, *sentinels, *([] if self._warm else [self._warm_pipe])]
        ready = wait(sources, timeout)
        for source in ready:
            if source in pipes:
                self._drain_pipe(pipes[source])
        for source in ready:
            if source in sentinels:
                self._reap(sentinels[source])
            elif source == self._warm_pipe:
                self._warm = True
        if self._commands in ready:
            self._read()
        while self._warm and self._waiting:
            self._fork(self._waiting.popleft())

    def _read(self) -> None:
        data = os.read(self._commands, 1 << 16)
        if not data:
            self._closed = True
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            to, command = decode(line)
            if to in ("", self.node):
                self._handle_command(command)

    def _handle_command(self, command: Command) -> None:
        if isinstance(command, Quit):
            self._closed = self._told_to_quit = True
        elif isinstance(command, SetJob):
            if self._private:
                self._private.adopt(command.job)
        elif isinstance(command, ReservePorts):
            self._listen(command)
        elif isinstance(command, StartWorkers):
            self._attempt = command.attempt
            self._waiting.append(command)
        elif command.attempt != self._attempt:
            return
        elif isinstance(command, StopWorkers):
            while self._waiting:
                for place in self._waiting.popleft().places:
                    self.send(WorkerExited(command.attempt, place.rank, -signal.SIGKILL, None, out_of_memory=False))
            self._signal(signal.SIGTERM if command.grace_seconds else signal.SIGKILL)
            self._kill_at = time.monotonic() + command.grace_seconds if command.grace_seconds else None
        elif isinstance(command, DumpStacks):
            # A stopped process cannot handle the signal that asks for its stacks: wake it.
            self._signal(main.STACKS_SIGNAL)
            self._signal(signal.SIGCONT)
        elif isinstance(command, WorkerCommand):
            for one in self._workers.values():
                one.pipe.send(command.body)

    def _listen(self, command: ReservePorts) -> None:
        """Bind, but do not listen: with SO_REUSEADDR on both sides the worker's framework can bind the same port,
        while the kernel gives it to nobody who asks for just any port."""
        self._close_ports()
        self._attempt = command.attempt
        for _ in range(command.workers):
            port = socket.socket()
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind((devices.address(), 0))
            self._ports.append(port)
        self.send(PortsReserved(command.attempt, tuple(port.getsockname()[1] for port in self._ports)))

    def _fork(self, start: StartWorkers) -> None:
        for place in start.places:
            ours, theirs = self._context.Pipe()
            # The zygote may be older than this agent's environment.
            environment = dict(os.environ) | start.environment[str(place.rank)]
            assignment = main.Assignment(
                str(self.run.path), place, start.peers, environment, start.checkpoint, start.step
            )
            rendezvous = self._ports[place.local_rank] if place.rank == 0 else None
            process = self._context.Process(target=main.main, args=(assignment, theirs, rendezvous))
            process.start()
            theirs.close()
            log, record = self.run.rank_log(place.rank), self.run.ledger(start.attempt, place.rank)
            self._workers[place.rank] = WorkerProcess(place, process, ours, log, record, oom_kills())
        self.send(WorkersStarted(start.attempt, {str(rank): one.pid for rank, one in self._workers.items()}))

    def _drain_pipe(self, rank: int) -> None:
        """Pass on what a worker says; a worker killed in the middle of a word closes its pipe."""
        one = self._workers[rank]
        try:
            while one.pipe.poll():
                self.send(WorkerReport(self._attempt, rank, one.pipe.recv()))
        except (EOFError, OSError):
            one.pipe.close()

    def _reap(self, rank: int) -> None:
        if not self._workers[rank].pipe.closed:
            self._drain_pipe(rank)
        one = self._workers.pop(rank)
        kill_group(one.pid)
        step = sample_ledger.last_step(one.ledger)
        killed_for_memory = oom_kills() > one.oom_kills
        self._send_what_grew()
        self.send(WorkerExited(self._attempt, rank, int(one.process.exitcode or 0), step, killed_for_memory))
        one.pipe.close()
        if not self._workers:
            self._close_ports()
            self._kill_at = None

    def _signal(self, number: int) -> None:
        for one in self._workers.values():
            if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGCONT):
                kill_group(one.pid, number)
            else:
                os.kill(one.pid, number)

    def _close_ports(self) -> None:
        for port in self._ports:
            port.close()
        self._ports.clear()

    def _end(self) -> None:
        """Kill the workers' groups and wait for them; the zygote follows when this process is gone."""
        self._signal(signal.SIGKILL)
        deadline = time.monotonic() + CLOSED_GRACE_SECONDS
        for one in self._workers.values():
            one.process.join(max(0.0, deadline - time.monotonic()))
            kill_group(one.pid)
        self._send_what_grew()
        if self._private and self._told_to_quit and not self._broken:
            self._private.remove()
