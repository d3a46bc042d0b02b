"""Files that are written whole, appended to in order, hashed and read in parts."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
SAFE_NAME = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


def is_safe_name(name: str) -> bool:
    """Whether a name from outside (a bucket, a manifest, another node) stays inside the folder that it is joined to."""
    return bool(SAFE_NAME.fullmatch(name)) and ".." not in name.split("/") and "." not in name.split("/")


def is_file_name(name: str) -> bool:
    """Whether a name from outside is that of a file in a folder itself."""
    return "/" not in name and is_safe_name(name)


def private_folder(path: Path) -> Path:
    """A folder of this user alone, made if it is not there; raises `PermissionError` for one that others own or may enter."""
    path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "not a folder of this user alone", str(path))
    return path


def users_folder(base: str) -> Path:
    """Return this user's folder of dtrain's below a folder that all users share; raises as `private_folder` does."""
    return private_folder(Path(base) / f"dtrain-{os.getuid()}")


def folder_clock(folder: Path) -> float:
    """Seconds since 1970 by the clock of a folder's file system, which is the same for all machines that see it. Raises `OSError`."""
    probe = folder / f".clock.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def read_at(path: Path, offset: int, count: int) -> bytes:
    """Read at most `count` bytes of a file from an offset on."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(count)


def write_whole(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write aside, flush to disk, rename: the file is whole or the old one stays, also after a power loss."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    flush_folder(path.parent)


def write_json(path: Path, value: Any, mode: int = 0o666) -> None:
    """Write plain data as JSON by `write_whole`."""
    write_whole(path, json.dumps(value, indent=1), mode)


class Descriptor:
    """The descriptor of an open file of dtrain's. User code may close it and open another file, which then has its number: nothing is
    written to that."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._file = _identity(number)

    @property
    def number(self) -> int:
        """The number, as long as it means the same file; raises `OSError` (EBADF) otherwise."""
        if _identity(self._number) != self._file:
            raise OSError(
                errno.EBADF,
                f"the program closed a file that is not its own (descriptor {self._number}), as os.closerange does",
            )
        return self._number

    @property
    def is_open(self) -> bool:
        """Whether the number still means the same file."""
        return _identity(self._number) == self._file

    def close(self) -> None:
        """Close the file, unless somebody else has."""
        if self.is_open:
            os.close(self._number)
            self._file = None


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        facts = os.fstat(descriptor)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


class Appender:
    """A file that is only appended to; what does not fit on a full disk is kept and written as soon as it does."""

    def __init__(self, path: Path) -> None:
        self._file = Descriptor(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666))
        self._pending = bytearray()
        self._unwritten = ""
        self._lost = ""

    @property
    def problem(self) -> str:
        """Why the last write failed, or why some data may never reach the disk; '' if there is nothing."""
        return self._lost or self._unwritten

    @property
    def pending(self) -> int:
        """Bytes that wait for room."""
        return len(self._pending)

    def append(self, data: bytes) -> None:
        """Add data, in order and whole; does not fail for want of room, but raises `OSError` if user code has closed the file."""
        self._pending += data
        number = self._file.number
        try:
            while self._pending:
                del self._pending[: os.write(number, self._pending)]
        except OSError as error:
            self._unwritten = error.strerror or str(error)
        else:
            self._unwritten = ""

    def flush(self) -> None:
        """Make what is written durable (fsync). A failure stays a problem: the kernel may have dropped the data, and says so once."""
        try:
            os.fsync(self._file.number)
        except OSError as error:
            self._lost = error.strerror or str(error)

    def close(self) -> None:
        """Write what waits, if it can be, make it durable, and close."""
        self.append(b"")
        self.flush()
        self._file.close()


CHUNK = 1 << 20


def digest(data: bytes | memoryview = b"") -> Any:
    """A BLAKE3 hash of 256 bits, as `hashlib` has others; several times as fast as its sha256."""
    from blake3 import blake3

    return blake3(data)


def hashed(path: Path) -> tuple[int, str]:
    """Size and digest of a file; the data is flushed to disk first, so that a rename that follows never precedes it."""
    result, size = digest(), 0
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            result.update(chunk)
            size += len(chunk)
    return size, str(result.hexdigest())


def flush_file(path: Path) -> None:
    """Make a file that somebody appended to durable; one that is not there is fine."""
    with suppress(OSError), open(path, "rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Make the names in a folder durable, on file systems that can."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def cache() -> Path:
    """Return the folder of what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtrain"
