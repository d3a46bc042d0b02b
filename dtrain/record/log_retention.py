"""How much of a log is kept: its beginning and its newest part. What lies between is given back to the file system by punching a
hole (fallocate(2), FALLOC_FL_PUNCH_HOLE), so that whoever writes to the file or reads it keeps its offsets.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dtrain.common.lazy_dataclass import dataclass

HEAD_BYTES = 1 << 20
"""Of the beginning, where versions, settings and the first warnings are."""
SEARCH_BYTES = 1 << 16
"""A line is not looked for further than this."""
BLOCK = 4096
KEEP_SIZE, PUNCH_HOLE = 1, 2


def shorten(path: Path, keep: int) -> int:
    """Take whole lines out of the middle of a log that takes more than `keep` bytes, down to three quarters of that; the
    bytes that are given back. Raises `OSError` where the file system cannot do that."""
    with open(path, "r+b") as file:
        facts = os.fstat(file.fileno())
        taken = facts.st_blocks * 512
        if taken <= keep:
            return 0
        begin = _after_line(file.fileno(), min(HEAD_BYTES, keep // 4))
        end = _after_line(file.fileno(), facts.st_size - keep // 2)
        if end - begin < BLOCK:
            return 0
        _punch(file.fileno(), begin, end - begin)
        return max(0, taken - os.fstat(file.fileno()).st_blocks * 512)


@dataclass(frozen=True)
class Piece:
    """A piece of a log, from an offset on."""

    removed: int
    """Bytes that are not there any more; the data follows them."""
    data: bytes
    last: bool
    """Whether it reaches the end of the log."""


def read(path: Path, offset: int, most: int = 1 << 23) -> Piece:
    """Read at most this number of bytes that lie together, from an offset on. Raises `FileNotFoundError`."""
    with open(path, "rb") as file:
        size, gone = os.fstat(file.fileno()).st_size, 0
        while offset + gone < size:
            begin = _seek(file.fileno(), offset + gone, os.SEEK_DATA, size)
            end = min(_seek(file.fileno(), begin, os.SEEK_HOLE, size), begin + most)
            file.seek(begin)
            data = file.read(end - begin)
            kept = data.lstrip(b"\0")  # a hole begins and ends within blocks that hold data too
            gone = begin - offset + len(data) - len(kept)
            if kept:
                return Piece(gone, kept.rstrip(b"\0") if end < size else kept, last=end == size)
            gone = max(gone, end - offset)
        return Piece(gone, b"", last=True)


def hole(path: Path) -> range:
    """The offsets whose data was removed; empty if there are none."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = _seek(file.fileno(), 0, os.SEEK_HOLE, size)
        return range(begin, _seek(file.fileno(), begin, os.SEEK_DATA, size)) if begin < size else range(0)


def _seek(fd: int, offset: int, what: int, size: int) -> int:
    try:
        return os.lseek(fd, offset, what)
    except OSError as error:
        if error.errno not in (
            errno.ENXIO,
            errno.EINVAL,
        ):  # no data after it; a file system that tells nothing of holes
            raise
        return offset if error.errno == errno.EINVAL and what == os.SEEK_DATA else size


def _after_line(fd: int, offset: int) -> int:
    """The offset after the line that this offset lies in, or the offset itself if the line is very long."""
    found = os.pread(fd, SEARCH_BYTES, offset).find(b"\n")
    return offset + found + 1


def _punch(fd: int, offset: int, length: int) -> None:
    import ctypes  # few agents need it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
