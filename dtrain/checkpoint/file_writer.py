"""Has a process of its own write, hash and check what a worker copied into shared memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from dtrain.checkpoint import write_process
from dtrain.checkpoint.kept_buffer import KeptBuffer
from dtrain.common.lazy_dataclass import dataclass

TRIES = 3
"""The process may have been killed, before this file or with it; what it was to write is still in memory."""


@dataclass(frozen=True)
class WeightsRange:
    """Bytes of the shared memory that are one of the model's tensors, or a part of one."""

    name: str
    """Name with all that distinguishes two ranges: type, shape, place in the whole."""
    begin: int
    length: int
    finite: str
    """The type as in `tensor_file.ITEM_BYTES` if all values must be finite, otherwise ''."""


@dataclass(frozen=True)
class WrittenFile:
    """Facts about a file that the process noted while it wrote it."""

    size: int
    digest: str
    weights: str
    """Sum of the digests of each range (its name and bytes) modulo 2^256, in hex: it does not depend on which rank writes what."""
    not_finite: str
    """The first range with values that are not finite, and how many; '' if there is none."""


@dataclass(frozen=True)
class MemoryFile:
    """Shared memory of another process's."""

    fd: int
    size: int


class FileWriter:
    """The process is started with the first file, and again if it died. `write` is for one thread, `start` for any."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._end: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process if it is not there; it imports what it needs while the caller goes on. Does not wait: a write under
        way starts it itself."""
        if self._lock.acquire(blocking=False):
            try:
                self._started()
            finally:
                self._lock.release()

    def write(self, buffer: KeptBuffer | MemoryFile, path: Path, weights: Sequence[WeightsRange]) -> WrittenFile:
        """Write a buffer to a new file and to the disk. Raises `OSError` as the process met it."""
        ranges = [(one.name, one.begin, one.length, one.finite) for one in weights]
        request, descriptor = {"path": str(path), "weights": ranges}, buffer.fd
        for _ in range(TRIES):
            with self._lock:
                channel = self._started()
                try:
                    write_process.send(channel, request, (descriptor,))
                    received = write_process.receive(channel)
                except OSError:
                    received = None
                if received is None:
                    self._end()
                    self._channel = None
                    continue
            answer = received[0]
            if "error" in answer:
                raise OSError(answer["errno"], answer["error"]) if answer["errno"] else OSError(answer["error"])
            return WrittenFile(buffer.size, answer["digest"], answer["weights"], answer["not_finite"])
        raise OSError(f"the process that writes checkpoints was killed {TRIES} times")

    def _started(self) -> socket.socket:
        if self._channel is None:
            self._channel, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", write_process.__name__, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                )
            self._end = weakref.finalize(self, _ended, self._channel, process)
        return self._channel


def _ended(channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
    channel.close()
    process.kill()
    process.wait()
