"""Disturbs the network of `dtrain drill`: the TCP connections that this process has open, which needs no privilege."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

BYTES_PER_SECOND = 4_000_000
SO_MAX_PACING_RATE = 47
"""Of Linux (`socket(7)`), which Python does not name."""


def cut() -> None:
    """Shut all connections down, as a broken network does: both sides see an end."""
    for connection in _connections():
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def slow_down() -> None:
    """Have every connection send at most `BYTES_PER_SECOND`, as over a slow network; the kernel holds the bytes back."""
    for connection in _connections():
        connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, BYTES_PER_SECOND)


def _connections() -> Iterator[socket.socket]:
    """Yield each TCP connection of this process, as a second handle that is closed afterwards."""
    for entry in Path("/proc/self/fd").iterdir():
        # Most numbers are of files, and some are closed meanwhile.
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as found:
            is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
            if is_tcp and found.getpeername():
                yield found
