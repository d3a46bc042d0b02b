"""Looks into the workers of a node when somebody asks: what their threads do and what they use.

A Python process writes its stacks to its log when it is asked to (faulthandler); they are read from there. Of any other program, which the
signal would kill, the kernel tells what its threads wait in. Neither counts as a sign of life of a worker that hangs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

from dtrain.agent.usage_meter import UsageMeter
from dtrain.agent.worker_process import WorkerProcess
from dtrain.api.protocol import FileAppended, Inspect, Inspected
from dtrain.common.files import read_at
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import STACKS_SIGNAL, catches, resident_megabytes, threads, usage
from dtrain.record import collective_records, inspection, sample_ledger
from dtrain.record.folder import RunDir
from dtrain.record.inspection import WorkerUsage

POLL_SECONDS = 0.03
SETTLED_SECONDS = 0.12
"""A log that has stacks in it and did not grow for so long has all of them."""
LATEST_SECONDS = 4.0
MOST_BYTES = 1 << 20
"""Bound of the stacks of one process, in bytes."""


@dataclass
class _Waiting:
    """A worker that was asked for its stacks."""

    worker: WorkerProcess
    offset: int
    """Offset in the rank's log at which the stacks start."""
    size: int
    grew: float
    """When the log grew last (monotonic seconds)."""


@dataclass
class _Native:
    """A py-spy that looks into a worker."""

    worker: WorkerProcess
    process: subprocess.Popen[bytes]
    output: IO[bytes]


class Inspector:
    """Answers the requests of one agent, which calls `poll` from its loop: nothing here waits."""

    def __init__(
        self,
        run: RunDir,
        node: str,
        meter: UsageMeter,
        send: Callable[[Inspected | FileAppended], None],
        written: Callable[[str], Iterable[FileAppended]],
    ) -> None:
        self._run = run
        self._node = node
        self._written = written
        """What there is to send of a file of the run folder."""
        self._records: dict[int, tuple[int, float]] = {}
        """Rank → size of its record of collectives, and when it grew last (monotonic seconds); those that are not complete."""
        self._meter = meter
        self._send = send
        self._command: Inspect | None = None
        self._next: deque[tuple[Inspect, Mapping[int, WorkerProcess]]] = deque()
        """Requests that came while another one was under way."""
        self._texts: dict[int, str] = {}
        self._usage: dict[str, WorkerUsage] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._native: dict[int, _Native] = {}
        self._deadline = 0.0
        self._no_native = ""
        """Why there are no native frames, where they are wanted."""

    @property
    def look_at(self) -> float | None:
        """When to call `poll` next (monotonic seconds); None if nothing is asked."""
        return time.monotonic() + POLL_SECONDS if self._command else None

    def begin(self, command: Inspect, workers: Mapping[int, WorkerProcess]) -> None:
        """Ask the chosen workers, when the requests before this one are answered."""
        if self._command:
            self._next.append((command, workers))
            return
        now = time.monotonic()
        chosen = {rank: one for rank, one in workers.items() if not command.ranks or rank in command.ranks}
        self._command, self._deadline = command, now + LATEST_SECONDS
        self._texts = {rank: "is not started yet, or has ended" for rank in command.ranks if rank not in workers}
        self._waiting, self._native, self._no_native = {}, {}, ""
        self._usage = {str(rank): self._used(one) for rank, one in chosen.items()}
        for rank, one in chosen.items() if command.stacks else ():
            if command.native and (program := _py_spy()):
                self._native[rank] = _looking(program, one)
            else:
                self._no_native = "py-spy is not installed" if command.native else ""
                self._ask(rank, one, now)
        self._records = {}
        for rank in chosen if command.collectives else ():
            if collective_records.ask(self._run, command.attempt, rank):
                self._records[rank] = 0, now
        self.poll()

    def poll(self) -> None:
        """Read what has come; answer when all of it is there, or the time is over."""
        if not self._command:
            return
        now = time.monotonic()
        for rank, waiting in list(self._waiting.items()):
            self._read(rank, waiting, now)
        for rank, native in list(self._native.items()):
            if native.process.poll() is not None:
                self._read_native(rank)
        for rank in list(self._records):
            self._look_at_record(self._command, rank, now)
        if now >= self._deadline or not (self._waiting or self._native or self._records):
            self._finish()

    def _used(self, one: WorkerProcess) -> WorkerUsage:
        used = usage(one.pid)
        return WorkerUsage(
            self._node, one.pid, sample_ledger.last_step(one.ledger), round(used.cpu_seconds, 2) if used else 0.0,
            round(resident_megabytes(one.pid), 1), bool(used and used.stopped),
            *self._meter.of_gpu(one.rank_info.local_rank),
        )  # fmt: skip

    def _ask(self, rank: int, one: WorkerProcess, now: float) -> None:
        if self._usage[str(rank)].stopped:
            self._texts[rank] = "is stopped by a signal (SIGCONT lets it go on)"
        elif catches(one.pid, STACKS_SIGNAL):
            size = one.begin_inspection()
            self._waiting[rank] = _Waiting(one, size, size, now)
            one.process.send(STACKS_SIGNAL)
        else:
            self._texts[rank] = "\n".join(threads(one.pid)) or "has ended"

    def _read(self, rank: int, waiting: _Waiting, now: float) -> None:
        size = waiting.worker.log_size()
        if size != waiting.size:
            waiting.size, waiting.grew = size, now
        elif size > waiting.offset and now - waiting.grew >= SETTLED_SECONDS:
            self._take(rank, waiting)

    def _take(self, rank: int, waiting: _Waiting) -> None:
        """The stacks that are in the log by now, if there are any."""
        data = (
            read_at(waiting.worker.log, waiting.offset, min(MOST_BYTES, waiting.size - waiting.offset))
            if waiting.size
            else b""
        )
        text, other = inspection.stacks_in(data.decode(errors="replace"))
        if not text and time.monotonic() < self._deadline:
            return
        self._texts[rank] = text or "\n".join(["wrote no stacks; its threads:", *threads(waiting.worker.pid)])
        waiting.worker.end_inspection(waiting.size, other_output=other)
        del self._waiting[rank]

    def _look_at_record(self, command: Inspect, rank: int, now: float) -> None:
        path = collective_records.file(self._run, command.attempt, rank)
        size = path.stat().st_size if path.exists() else 0
        before, grew = self._records[rank]
        if size != before:
            self._records[rank] = size, now
        elif size and now - grew >= SETTLED_SECONDS:
            del self._records[rank]
            for piece in self._written(str(path.relative_to(self._run.path))):
                self._send(piece)

    def _read_native(self, rank: int) -> None:
        native = self._native.pop(rank)
        native.output.seek(0)
        text = native.output.read(MOST_BYTES).decode(errors="replace").strip()
        native.output.close()
        if native.process.returncode or not text:
            self._no_native = (text.splitlines() or ["py-spy said nothing"])[-1]
            self._ask(rank, native.worker, time.monotonic())
        else:
            self._texts[rank] = _threads_of(text)

    def _finish(self) -> None:
        """Send the answer with what has arrived."""
        assert self._command
        for native in self._native.values():
            native.process.kill()
            native.process.wait()
            native.output.close()
        self._texts |= dict.fromkeys(self._native, "py-spy did not answer")
        for rank, waiting in list(self._waiting.items()):
            self._take(rank, waiting)
        command, self._command = self._command, None
        more = (
            f"\n{inspection.NOTE}no frames of C and C++ on {self._node}: {self._no_native}" if self._no_native else ""
        )
        stacks = inspection.shared(([rank], text + more) for rank, text in self._texts.items())
        self._send(Inspected(command.attempt, command.request, stacks, self._usage))
        if self._next:
            self.begin(*self._next.popleft())


def _py_spy() -> str | None:
    """The program; None if it is not installed."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _looking(program: str, one: WorkerProcess) -> _Native:
    """Have py-spy look at a worker."""
    output = tempfile.TemporaryFile()
    command = [program, "dump", "--native", "--pid", str(one.pid)]
    return _Native(
        one, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT), output
    )


def _threads_of(text: str) -> str:
    """Return py-spy's view of a process's threads without what differs between ranks: ids, addresses, states."""
    lines = []
    for line in text.splitlines():
        if line.startswith("Thread "):
            lines.append(inspection.THREAD_HEAD)
        elif lines and line.startswith(" "):
            lines.append("  " + re.sub(r"^0x[0-9a-f]+ ", "", line.strip()))
    return "\n".join(lines) or text
