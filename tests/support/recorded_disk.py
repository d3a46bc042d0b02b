"""A disk below one folder whose system calls are recorded, so that a power loss can be tried after each, or of which one fails.

What survives a power loss: of a file, its content at its last fsync; of a folder, its names at its last fsync or after any of the calls
since, whatever other folders kept. A file that was never flushed may be empty.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

CALLS = (
    "open",
    "write",
    "pwrite",
    "fsync",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "link",
    "truncate",
    "ftruncate",
    "utime",
)
MOST_STATES = 400
"""After one call, of all that a power loss may leave."""
Names = dict[str, int]


@dataclass
class Moment:
    """After one call."""

    call: str
    root: int
    folders: dict[int, list[Names]]
    """What a folder may hold after a power loss, the durable names first."""
    files: dict[int, list[bytes]]
    """What a file may hold after a power loss."""

    def states(self) -> Iterator[dict[str, bytes | None]]:
        """Each tree that a power loss may leave: path → content, None for a folder."""
        numbers = list(self.folders)
        choices = itertools.product(*(range(len(self.folders[number])) for number in numbers))
        for choice in itertools.islice(choices, MOST_STATES):
            names = {number: self.folders[number][index] for number, index in zip(numbers, choice, strict=True)}
            for version in (0, -1):
                yield dict(self._walk(self.root, "", names, version))

    def _walk(
        self, folder: int, above: str, names: dict[int, Names], version: int
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, number in names[folder].items():
            if number in self.folders:
                yield f"{above}{name}", None
                yield from self._walk(number, f"{above}{name}/", names, version)
            else:
                yield f"{above}{name}", self.files[number][version]


def restored(state: dict[str, bytes | None], folder: Path) -> Path:
    """Make a tree in a new folder."""
    folder.mkdir()
    for path, content in state.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
    return folder


@dataclass
class RecordedDisk:
    """Use `recording` or `failing`."""

    folder: Path
    fails: Callable[[int, str], OSError | None] = lambda number, call: None
    moments: list[Moment] = field(default_factory=list)
    calls: int = 0
    record: bool = True
    _identities: dict[int, int] = field(default_factory=dict)
    """Inode → a number that is not used again when the inode is."""
    _durable: dict[int, Names] = field(default_factory=dict)
    _since: dict[int, list[Names]] = field(default_factory=dict)
    """Folder → its names after each call since its last fsync."""
    _flushed: dict[int, bytes] = field(default_factory=dict)
    _seen: dict[int, bytes] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)
    _busy: threading.RLock = field(default_factory=threading.RLock)

    def begin(self) -> None:
        """What is there now is durable."""
        folders, files = self._tree()
        self._durable = dict(folders)
        self._flushed = dict(files)

    def _tree(self) -> tuple[dict[int, Names], dict[int, bytes]]:
        folders: dict[int, Names] = {}
        files: dict[int, bytes] = {}
        seen: set[int] = set()

        def identity(facts: os.stat_result) -> int:
            seen.add(facts.st_ino)
            return self._identities.setdefault(facts.st_ino, next(self._numbers))

        def walk(path: str, number: int) -> None:
            names = folders[number] = {}
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                facts = entry.stat(follow_symlinks=False)
                names[entry.name] = identity(facts)
                if stat.S_ISDIR(facts.st_mode):
                    walk(entry.path, names[entry.name])
                else:
                    with REAL_OPEN(entry.path, "rb") as file:
                        files[names[entry.name]] = file.read()

        walk(str(self.folder), identity(self.folder.stat()))
        self._identities = {inode: number for inode, number in self._identities.items() if inode in seen}
        return folders, files

    def note(self, call: str, flushed: int | None = None) -> None:
        """A call has been made, perhaps an fsync of this inode."""
        if not self.record:
            return
        folders, files = self._tree()
        for number, names in folders.items():
            self._since.setdefault(number, [])
            if names not in self._since[number]:
                self._since[number].append(names)
        of = self._identities.get(flushed, -1) if flushed is not None else -1
        if of in folders:
            self._durable[of], self._since[of] = folders[of], []
        elif of in files:
            self._flushed[of] = files[of]
        self._seen |= files
        known = {**dict.fromkeys(self._seen, b""), **self._flushed}
        ways = {
            number: ([self._durable[number]] if number in self._durable else [{}]) + self._since.get(number, [])
            for number in folders.keys() | self._durable.keys()
        }
        contents = {
            number: list(dict.fromkeys([content, self._seen.get(number, content)])) for number, content in known.items()
        }
        self.moments.append(Moment(call, self._identities[self.folder.stat().st_ino], ways, contents))

    def about_to(self, call: str) -> None:
        """Raises `OSError` if this call is to fail."""
        self.calls += 1
        if error := self.fails(self.calls, call):
            raise error

    def is_below(self, path: Any, dir_fd: int | None = None) -> bool:
        """Whether a path, or an open file, is in the folder."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        elif dir_fd is not None:
            path = Path(f"/proc/self/fd/{dir_fd}").readlink() / os.fspath(path)
        return Path(os.fsdecode(path)).absolute().is_relative_to(self.folder)


REAL_OPEN = builtins.open


def _patched(disk: RecordedDisk, name: str) -> Callable[..., Any]:
    real = getattr(os, name)

    def call(first: Any, *arguments: Any, **named: Any) -> Any:
        with disk._busy:
            if not disk.is_below(first, named.get("dir_fd") or named.get("src_dir_fd")):
                return real(first, *arguments, **named)
            disk.about_to(name)
            result = real(first, *arguments, **named)
            if name != "open" or arguments[0] & (os.O_CREAT | os.O_TRUNC):
                disk.note(f"{name} {first}", os.fstat(first).st_ino if name == "fsync" else None)
            return result

    return call


def _patched_open(disk: RecordedDisk) -> Callable[..., Any]:
    def call(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        with disk._busy:
            if isinstance(file, int) or not disk.is_below(file):
                return REAL_OPEN(file, mode, *arguments, **named)
            disk.about_to("open")
            result = REAL_OPEN(file, mode, *arguments, **named)
            if set(mode) & set("wax"):
                disk.note(f"open {file}")
            return result

    return call


@contextmanager
def on(disk: RecordedDisk) -> Iterator[RecordedDisk]:
    """Watch the calls of this process below the disk's folder."""
    patches = [mock.patch.object(os, name, _patched(disk, name)) for name in CALLS]
    patches += [mock.patch.object(module, "open", _patched_open(disk)) for module in (builtins, io)]
    disk.begin()
    for patch in patches:
        patch.start()
    try:
        yield disk
    finally:
        for patch in patches:
            patch.stop()


@contextmanager
def recording(folder: Path) -> Iterator[RecordedDisk]:
    """Record every call."""
    with on(RecordedDisk(folder)) as disk:
        yield disk


@contextmanager
def failing(folder: Path, number: int, code: int) -> Iterator[RecordedDisk]:
    """Fail one call, by its number from 1."""

    def fails(count: int, _call: str) -> OSError | None:
        return OSError(code, os.strerror(code)) if count == number else None

    with on(RecordedDisk(folder, fails, record=False)) as disk:
        yield disk


ERRORS = (errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EDQUOT)
