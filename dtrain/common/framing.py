"""Cuts a byte stream into frames: four bytes of length, most significant first, then so many bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

LENGTH = struct.Struct("!I")
MOST_BYTES = 1 << 26
"""Longest frame, in bytes."""


def framed(body: bytes) -> bytes:
    """Return the bytes as one frame; raises `ValueError` if they are too many."""
    if len(body) > MOST_BYTES:
        raise ValueError(f"a message of {len(body):,} bytes is longer than {MOST_BYTES:,}")
    return LENGTH.pack(len(body)) + body


class Frames:
    """Frames of a stream that arrives in pieces."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def add(self, data: bytes) -> Iterator[bytes]:
        """The frames that are whole with this piece; raises `ValueError` for a length that no frame has."""
        self._rest += data
        while len(self._rest) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._rest)
            if size > MOST_BYTES:
                raise ValueError(f"a frame of {size:,} bytes")
            end = LENGTH.size + size
            if len(self._rest) < end:
                break
            frame = bytes(self._rest[LENGTH.size : end])
            del self._rest[:end]
            yield frame
