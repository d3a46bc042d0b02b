"""Shared memory that snapshots are copied into, kept from one to the next."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from dtrain.checkpoint.memory_record import RecordFile
from dtrain.checkpoint.tensor_file import TensorFile
from dtrain.common import hooks
from dtrain.common.files import Descriptor
from dtrain.common.memory import granted_memory

Buffer = TypeVar("Buffer", bound="KeptBuffer")


class KeptBuffer:
    """A memory file of the size of a file of tensors, mapped, with that file's header in it; whoever is given its descriptor
    can map it too. Raises `OSError` if there is not that much memory."""

    def __init__(self, file: TensorFile) -> None:
        hooks.reach("memory")
        if file.size > granted_memory()[1]:
            # The kernel would end some process instead.
            raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)} for a copy of {file.size / 1e6:,.0f} MB")
        self.file = file
        self._file = Descriptor(os.memfd_create("dtrain-snapshot", os.MFD_CLOEXEC))
        try:
            # Takes the pages now: memory that is short is an error here, and no SIGBUS in the middle of a copy.
            os.posix_fallocate(self.fd, 0, file.size)
            self.memory = mmap.mmap(self.fd, file.size)
        except OSError:
            self._file.close()
            raise
        self.memory[: len(file.header)] = file.header
        self.record = RecordFile()
        self.free = threading.Event()
        """Set while it holds no snapshot that is still to be written."""
        self.step = -1
        """Of the in-memory checkpoint that it holds; -1: of none."""

    @property
    def fd(self) -> int:
        """The descriptor; raises `OSError` if user code has closed it."""
        return self._file.number

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.file.size

    def close(self) -> None:
        """Give the memory back; the mapping goes with the last tensor that looks at it."""
        self.record.begin()
        self.record.close()
        self._file.close()


class KeptBuffers(Generic[Buffer]):
    """The buffers of one training: one, another if a snapshot is taken while the one before is being written, and one for the newest
    in-memory checkpoint, which stays until the next is complete."""

    def __init__(self, make: Callable[[TensorFile], Buffer]) -> None:
        self._make = make
        self._buffers: list[Buffer] = []

    def taken(self, file: TensorFile) -> Buffer:
        """A buffer for this file that nobody needs; if there is no memory for one more, the newest in-memory checkpoint is given up,
        or a write waited for. Raises `OSError` if there is no memory at all."""
        useless = [buffer for buffer in self._buffers if buffer.file != file and buffer.free.is_set()]
        for buffer in useless:
            self._buffers.remove(buffer)
            buffer.close()
        fitting = [buffer for buffer in self._buffers if buffer.file == file]
        newest = max((buffer.step for buffer in fitting), default=-1)
        free = [buffer for buffer in fitting if buffer.free.is_set()]
        found = next((buffer for buffer in free if buffer.step < max(newest, 0)), None)
        if found is None:
            try:
                found = self._make(file)
                self._buffers.append(found)
            except OSError:
                if not fitting:
                    raise
                found = (free or fitting)[0]
                found.free.wait()
        found.free.clear()
        found.step = -1
        found.record.begin()
        return found
