"""Shared memory that a snapshot is copied into, kept from one snapshot to the next."""

from __future__ import annotations

import mmap
import os


class KeptBuffer:
    """A memory file of a fixed size, mapped; whoever is given its descriptor can map it too. Raises `OSError` if there is not
    that much memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("dtrain-snapshot", os.MFD_CLOEXEC)
        try:
            # Takes the pages now: memory that is short is an error here, and no SIGBUS in the middle of a copy.
            os.posix_fallocate(self.fd, 0, size)
            self.memory = mmap.mmap(self.fd, size)
        except OSError:
            os.close(self.fd)
            raise
        self.busy = False
        """Whether it holds a snapshot that is not written yet."""

    def close(self) -> None:
        """Give the memory back; the mapping goes with the last tensor that looks at it."""
        os.close(self.fd)
