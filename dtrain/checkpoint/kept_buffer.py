"""Shared memory that a snapshot is copied into, kept from one snapshot to the next."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

MEMORY = Path("/proc/meminfo")


class KeptBuffer:
    """A memory file of a fixed size, mapped; whoever is given its descriptor can map it too. Raises `OSError` if there is not
    that much memory."""

    def __init__(self, size: int) -> None:
        if size > _available():
            # The kernel would end some process instead.
            raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)} for a copy of {size / 1e6:,.0f} MB")
        self.size = size
        self.fd = os.memfd_create("dtrain-snapshot", os.MFD_CLOEXEC)
        try:
            # Takes the pages now: memory that is short is an error here, and no SIGBUS in the middle of a copy.
            os.posix_fallocate(self.fd, 0, size)
            self.memory = mmap.mmap(self.fd, size)
        except OSError:
            os.close(self.fd)
            raise
        self.free = threading.Event()
        """Set while it holds no snapshot that is still to be written."""

    def close(self) -> None:
        """Give the memory back; the mapping goes with the last tensor that looks at it."""
        os.close(self.fd)


def _available() -> int:
    """Bytes that the machine can give without swapping."""
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
