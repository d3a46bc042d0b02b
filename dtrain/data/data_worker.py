"""A data worker: a process, forked from the one that trains, that fetches batches by number and hands them over in memory.

A batch is pickled with its arrays out of band (PEP 574) into an anonymous memory file (memfd_create(2)) of its own, whose
descriptor goes over a socket: it takes no room in /dev/shm, and no name that could be left behind.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import STACKS_SIGNAL, die_with_parent, set_name

HEADER = struct.Struct("=q?ddqq")
"""Number, whether it failed, seconds, CPU seconds, bytes of the pickle, bytes of the table of array sizes."""
NUMBER = struct.Struct("=q")
ALIGNMENT = 64
"""Bytes; vector instructions want arrays to begin at a multiple of it."""


@dataclass(frozen=True)
class Fetched:
    """A batch from a data worker."""

    number: int
    failed: bool
    value: Any
    """The batch, or the traceback as text."""
    seconds: float
    cpu_seconds: float
    size: int
    """Bytes."""


class DataWorker:
    """The side of the process that trains."""

    def __init__(self, fetch: Callable[[int], Any], close: Sequence[int]) -> None:
        """`fetch` gives the batch of a number; the process closes these file descriptors, which are not for it."""
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asked: list[int] = []
        """Numbers of which the batch is still to come, in order."""
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child runs no code of the other threads
            self.pid = os.fork()
        if self.pid == 0:
            _run(fetch, other, [*close, self.socket.fileno()], parent)
        other.close()

    def ask(self, number: int) -> None:
        """Have it fetch a batch; raises `OSError` if it is gone."""
        self.socket.send(NUMBER.pack(number))
        self.asked.append(number)

    def receive(self) -> Fetched | None:
        """The next batch, waited for; None if the process is gone."""
        try:
            header, descriptors, _, _ = socket.recv_fds(self.socket, HEADER.size, 1)
        except OSError:
            return None
        if not header:
            return None
        number, failed, seconds, cpu_seconds, pickled, table = HEADER.unpack(header)
        self.asked.remove(number)
        value, size = _read(descriptors[0], pickled, table)
        return Fetched(number, failed, value, seconds, cpu_seconds, size)

    def show_stacks(self) -> None:
        """Have it write the stacks of its threads to the log."""
        self._signal(STACKS_SIGNAL)

    def end(self) -> int:
        """End it; its wait status, 0 if it is not known."""
        self._signal(signal.SIGKILL)
        self.socket.close()
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:  # the user's code waits for all children
            return 0

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _run(fetch: Callable[[int], Any], channel: socket.socket, close: list[int], parent: int) -> None:
    """The process's whole life; it never returns into the code that forked it."""
    code = 1
    try:
        die_with_parent(parent)
        for descriptor in close:
            os.close(descriptor)
        set_name("dtrain-data")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(1)  # the thread pool of OpenMP does not survive a fork
        while message := channel.recv(NUMBER.size):
            _serve(fetch, channel, NUMBER.unpack(message)[0])
        code = 0
    except BaseException:  # noqa: BLE001  there is nobody above to raise to
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(fetch: Callable[[int], Any], channel: socket.socket, number: int) -> None:
    began, cpu_began = time.perf_counter(), time.process_time()
    failed = False
    try:
        pickled, buffers = _pickled(fetch(number))
    except Exception:  # noqa: BLE001  the process that trains decides
        failed = True
        pickled, buffers = _pickled(traceback.format_exc())
    sizes = [buffer.nbytes for buffer in buffers]
    table = struct.pack(f"={len(sizes)}q", *sizes)
    descriptor = os.memfd_create("dtrain-batch", os.MFD_CLOEXEC)
    try:
        parts: list[Any] = [pickled, table]
        position = len(pickled) + len(table)
        for buffer in buffers:
            parts += [bytes(-position % ALIGNMENT), buffer]
            position += -position % ALIGNMENT + buffer.nbytes
        for part in parts:
            _write(descriptor, part)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        header = HEADER.pack(number, failed, seconds, cpu_seconds, len(pickled), len(table))
        socket.send_fds(channel, [header], [descriptor])
    finally:
        os.close(descriptor)
    sys.stdout.flush()
    sys.stderr.flush()


def _write(descriptor: int, part: Any) -> None:
    rest = memoryview(part)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class _Pickler(pickle.Pickler):
    """Puts PyTorch's tensors out of band as NumPy arrays do; their own way copies them into the pickle."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_quantized:
            return NotImplemented
        value = value.detach().cpu().contiguous()
        if value.dtype is torch.bfloat16:
            return _bfloat16, (value.view(torch.int16).numpy(),)
        try:
            return _tensor, (value.numpy(),)
        except TypeError:  # a type of numbers that NumPy does not have
            return NotImplemented


def _tensor(array: Any) -> Any:
    return sys.modules["torch"].from_numpy(array)


def _bfloat16(array: Any) -> Any:
    torch = sys.modules["torch"]
    return torch.from_numpy(array).view(torch.bfloat16)


def _pickled(value: Any) -> tuple[bytes, list[memoryview]]:
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    return file.getvalue(), [buffer.raw() for buffer in buffers]


def same(one: Any, other: Any) -> bool:
    """Whether two batches are equal to the last bit."""
    pickled, buffers = _pickled(one)
    other_pickled, other_buffers = _pickled(other)
    return pickled == other_pickled and buffers == other_buffers


def _read(descriptor: int, pickled: int, table: int) -> tuple[Any, int]:
    """The value in a memory file, and the file's size. It is copied: a mapping would keep its descriptor open."""
    try:
        size = os.fstat(descriptor).st_size
        view = np.empty(size, np.uint8).data
        done = 0
        while done < size:
            done += os.preadv(descriptor, [view[done:]], done)
    finally:
        os.close(descriptor)
    position = pickled + table
    buffers = []
    for nbytes in struct.unpack(f"={table // 8}q", view[pickled:position]):
        position += -position % ALIGNMENT
        buffers.append(view[position : position + nbytes])
        position += nbytes
    return pickle.loads(view[:pickled], buffers=buffers), size
