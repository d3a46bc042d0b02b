"""The in-memory checkpoints of a node, as the agent's loop sees them: kept, given to other nodes, viewed by the next attempt's workers,
and written to disk if there is none."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from dtrain.agent.memory.copies import MemoryCopies, MemoryCopy
from dtrain.api import reports
from dtrain.api.memory_protocol import MemoryCheckpoint, MemoryHeld, MemoryWritten, WriteMemory
from dtrain.api.protocol import TAG, AgentEvent, StartWorkers, WorkerReport
from dtrain.checkpoint.file_writer import FileWriter, MemoryFile, WeightsRange
from dtrain.checkpoint.store import Files
from dtrain.common.files import flush_file, hashed
from dtrain.common.message import tagged
from dtrain.record.events import UserWarned
from dtrain.record.folder import RunDir

FAULTS = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGABRT)
"""Ends of a worker that may have written to memory at random before."""


class NodeMemory:
    """The in-memory checkpoints of this node, and the agents that are asked for the parts it lacks."""

    def __init__(self, run: RunDir, node: str, send: Callable[[AgentEvent], None]) -> None:
        self._run = run
        self._copies = MemoryCopies(run.memory / f"{node}-{os.getpid()}")  # agents of two supervisors may have one name
        self._send = send
        self._key = ""
        self._attempt = 0
        self._ranks: tuple[int, ...] = ()
        self._close_server: Callable[[], None] = lambda: None
        self._stop_partner: Callable[[], None] = lambda: None
        self._port = 0
        self._view: Future[Path] = Future()

    def listen(self, address: str, key: str) -> int:
        """The port where other agents that know the key get what is here; 0 without a key."""
        if key and not self._port:
            from dtrain.agent.memory.transfer import MemoryServer

            server = MemoryServer(address, key, self._copies)
            self._key, self._port, self._close_server = key, server.port, server.close
        return self._port

    def begin(self, start: StartWorkers) -> None:
        """An attempt begins: have the checkpoint that it goes on from here, and drop all others."""
        self._stop_partner()
        self._attempt, self._ranks = start.attempt, tuple(info.rank for info in start.ranks)
        self._copies.keep_only({start.memory.attempt} if start.memory else (), before=start.attempt)
        if start.partner:
            from dtrain.agent.memory.transfer import PartnerCopies

            self._stop_partner = PartnerCopies(start.partner, self._key, start.attempt, self._copies, self._warn).stop
        if start.memory is None:
            return
        self._view = Future()
        if own := self._own(start.memory):
            self._show(start.memory, self._view, lambda: own)
        else:
            threading.Thread(target=self._fetch, args=(start.memory, self._view), daemon=True).start()

    def ready(self, start: StartWorkers) -> bool:
        """Whether the checkpoint is here, or cannot be had."""
        return start.memory is None or self._view.done()

    def folder(self, start: StartWorkers) -> str:
        """Return the folder of a checkpoint; '' if the attempt resumes from none in memory. Raises `OSError` if it
        could not be fetched."""
        return str(self._view.result()) if start.memory else ""

    def offer(self, attempt: int, rank: int, pid: int, offered: reports.MemoryOffered) -> None:
        """A worker has a new buffer."""
        try:
            self._copies.offer(attempt, rank, pid, offered)
        except FileNotFoundError:  # it has just ended
            return
        except OSError as error:
            self._warn(f"the in-memory checkpoints of rank {rank} cannot be kept: {error.strerror}", rank)

    def look(self) -> None:
        """Give back the memory of what this attempt has gone on from, as soon as all ranks have something newer."""
        if self._copies.superseded(self._attempt, self._ranks):
            self._copies.keep_only((self._attempt,), before=self._attempt)

    def exited(self, rank: int, code: int) -> None:
        """A worker of the attempt ended with this exit code, or minus the signal."""
        if code in FAULTS:
            self._copies.distrust(self._attempt, rank)

    def ended(self) -> None:
        """Report the parts that are held, after all workers have ended."""
        self._stop_partner()
        if parts := self._copies.held():
            self._send(MemoryHeld(self._attempt, parts))

    def write(self, command: WriteMemory) -> None:
        """Begin to write parts to disk; the events say when they are there."""
        threading.Thread(target=self._write, args=(command,), daemon=True).start()

    def close(self) -> None:
        """Free all memory and stop the transfers."""
        self._stop_partner()
        self._close_server()
        self._copies.close()

    def _own(self, memory: MemoryCheckpoint) -> dict[int, MemoryCopy]:
        """Return the node's own parts of a checkpoint if it has all of them, otherwise nothing."""
        ranks = [rank for peer in memory.peers for rank in peer.ranks]
        found = {rank: self._copies.steps(memory.attempt, rank).get(memory.step) for rank in ranks}
        own = {rank: copy for rank, copy in found.items() if copy}
        return own if len(own) == len(found) else {}

    def _fetch(self, memory: MemoryCheckpoint, view: Future[Path]) -> None:
        from dtrain.agent.memory.transfer import all_parts

        self._show(memory, view, lambda: all_parts(self._copies, memory, self._key))

    def _show(
        self, memory: MemoryCheckpoint, view: Future[Path], parts: Callable[[], Mapping[int, MemoryCopy]]
    ) -> None:
        try:
            view.set_result(self._copies.view(memory.attempt, memory.step, parts()))
        except (OSError, ValueError) as error:
            problem = f"the in-memory checkpoint of step {memory.step} cannot be used: {error}"
            self._send(MemoryHeld(self._attempt, ()))  # so that the next attempt goes on from the disk
            view.set_exception(OSError(problem))

    def _write(self, command: WriteMemory) -> None:
        from dtrain.checkpoint.factory import store_of

        writer = FileWriter()
        store = store_of(self._run, self._run.job())
        folder = store.staging(command.attempt, command.step)
        for rank in command.ranks:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                files, weights = _write_part(writer, self._copies.steps(command.attempt, rank)[command.step], folder)
                store.publish(command.attempt, command.step, files)
                written = MemoryWritten(command.attempt, rank, command.step, files, weights)
            except Exception as error:  # noqa: BLE001  whatever it is, the supervisor waits for an answer
                written = MemoryWritten(command.attempt, rank, command.step, error=str(error) or type(error).__name__)
            self._send(written)

    def _warn(self, text: str, rank: int | None = None) -> None:
        said_by = rank if rank is not None else min(self._ranks, default=0)
        self._send(WorkerReport(self._attempt, said_by, tagged(UserWarned(text=text), TAG)))


def _write_part(writer: FileWriter, copy: MemoryCopy, folder: Path) -> tuple[Files, str]:
    """A part's files on the disk, and the digest of the weights in them. Raises `OSError`."""
    found = copy.read()
    if found is None:
        raise OSError("it is not complete")
    record, small = found
    weights = [WeightsRange(*one) for one in record.weights]
    written = writer.write(MemoryFile(copy.buffer, record.size), folder / record.file, weights)
    if written.not_finite:
        raise OSError(f"its weights are not finite: {written.not_finite}")
    files = {record.file: (written.size, written.digest)}
    for name, content in small.items():
        (folder / name).write_bytes(content)
        flush_file(folder / name)
        files[name] = hashed(folder / name)
    return files, written.weights
