"""The user's code as it was when a run began: Python imports it from a snapshot, under the names and paths of the files themselves.

`__file__`, tracebacks and relative paths mean the user's own folder; only the text of a source file comes from the snapshot.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache, partial
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from dtrain.common.lazy_dataclass import dataclass

SCRIPT = "_dtrain_script"
"""The name that a script has in the processes that `multiprocessing` starts anew, beside `__main__`."""


@dataclass(frozen=True)
class SnapshotFile:
    """The text of a source file, and when the file was written."""

    source: bytes
    mtime_ns: int


@dataclass(frozen=True)
class Snapshot:
    """The source files of a run, by their paths (folders without symbolic links)."""

    digest: str
    """Identifies the code by 12 hexadecimal digits: the same files give the same, whenever they were written."""
    files: Mapping[str, SnapshotFile]
    folders: frozenset[str]
    """Folders whose source files are all known."""
    modules: Mapping[str, str]
    """Top-level module that lies outside the recipe's folder → its file."""

    def source(self, path: str | os.PathLike[str]) -> bytes | None:
        """The text of a file; None if the snapshot does not have it."""
        found = self.files.get(_key(path))
        return found.source if found else None

    def as_on_disk(self, path: str | os.PathLike[str]) -> os.stat_result | None:
        """The file's state on disk if nobody wrote to it since; otherwise None."""
        found = self.files[_key(path)]
        try:
            now = Path(path).stat()
        except OSError:
            return None
        return now if (now.st_mtime_ns, now.st_size) == (found.mtime_ns, len(found.source)) else None


_used: ContextVar[Snapshot | None] = ContextVar("snapshot", default=None)


@contextmanager
def using(snapshot: Snapshot | None) -> Iterator[None]:
    """Have `read` and `is_file` answer from a snapshot in this thread."""
    token = _used.set(snapshot)
    try:
        yield
    finally:
        _used.reset(token)


def read(path: Path) -> bytes:
    """The text of a source file, from the snapshot that is in use if it has it; raises `OSError`."""
    snapshot = _used.get()
    source = snapshot.source(path) if snapshot else None
    return path.read_bytes() if source is None else source


def is_file(path: Path) -> bool:
    """Whether a source file is in the snapshot that is in use, or on disk."""
    snapshot = _used.get()
    return bool(snapshot and _key(path) in snapshot.files) or path.is_file()


def loader_of(name: str, path: Path) -> SourceFileLoader:
    """The loader for a file that is imported by its path."""
    snapshot = _used.get()
    known = snapshot is not None and _key(path) in snapshot.files
    return _Loader(name, str(path), snapshot) if snapshot and known else SourceFileLoader(name, str(path))


def install(snapshot: Snapshot) -> None:
    """Have this process import the user's code from a snapshot from now on, also what a zygote has imported in an edited form;
    processes that `multiprocessing` starts do the same."""
    from multiprocessing import spawn

    _used.set(snapshot)
    sys.path_hooks.insert(0, lambda folder: _Finder(folder, snapshot))
    sys.path_importer_cache.clear()
    sys.meta_path.insert(0, _Elsewhere(snapshot))
    known = [
        name for name, module in sys.modules.items() if _key(getattr(module, "__file__", None) or "") in snapshot.files
    ]
    if any(snapshot.as_on_disk(str(sys.modules[name].__file__)) is None for name in known):
        for name in known:
            del sys.modules[name]
    spawn.get_preparation_data = partial(_for_a_child, spawn.get_preparation_data, snapshot)


def _for_a_child(prepared: Callable[[str], dict[str, Any]], snapshot: Snapshot, process: str) -> dict[str, Any]:
    """What `multiprocessing` sends to a process that it starts anew (`spawn`, `forkserver`), with the snapshot before all else: reading it
    installs it there, and the modules that this process has of it are found under their names here."""
    data = prepared(process)
    files = {name: str(getattr(module, "__file__", None) or "") for name, module in list(sys.modules.items())}
    main = {SCRIPT: data["init_main_from_path"]} if "init_main_from_path" in data else {}
    found = {name: file for name, file in (files | main).items() if "." not in name and _key(file) in snapshot.files}
    if SCRIPT in found:
        del data["init_main_from_path"]
        data["init_main_from_name"] = SCRIPT
    found.pop("__main__", None)
    return {"dtrain": _Installed(replace(snapshot, modules={**snapshot.modules, **found}))} | data


class _Installed:
    """Installs a snapshot in the process that unpickles this."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __reduce__(self) -> tuple[Callable[[Snapshot], None], tuple[Snapshot]]:
        return install, (self._snapshot,)


class _Loader(SourceFileLoader):
    """Loads a module from the snapshot's text; compiled code is kept beside the file only while the file is the same."""

    def __init__(self, name: str, path: str, snapshot: Snapshot) -> None:
        super().__init__(name, path)
        self._snapshot = snapshot

    def path_stats(self, path: str) -> Mapping[str, Any]:
        now = self._snapshot.as_on_disk(path)
        if now is None:
            raise OSError(f"{path} was edited since")
        return {"mtime": int(now.st_mtime), "size": now.st_size}

    def get_data(self, path: str) -> bytes:
        source = self._snapshot.source(path)
        if source is None:
            return super().get_data(path)
        if self._snapshot.as_on_disk(path) is None:  # tracebacks show the line that ran
            lines = source.decode(errors="replace").splitlines(keepends=True)
            linecache.cache[path] = (len(source), None, lines, path)
        return source


class _Finder:
    """Finds modules in a folder whose source files the snapshot has; raises `ImportError` for every other folder."""

    def __init__(self, folder: str, snapshot: Snapshot) -> None:
        self._folder = folder or str(Path.cwd())
        if os.path.realpath(self._folder) not in snapshot.folders:
            raise ImportError(folder, path=folder)
        self._snapshot = snapshot
        self._others = FileFinder(self._folder, (ExtensionFileLoader, EXTENSION_SUFFIXES))

    def find_spec(self, name: str, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's file in this folder; an extension module, or a folder without `__init__.py`, if there is none."""
        found = _spec(name, f"{self._folder}/{name.rpartition('.')[2]}", self._snapshot)
        return found or self._others.find_spec(name, target)

    def invalidate_caches(self) -> None:
        """Forget what is known of the folder's extension modules."""
        self._others.invalidate_caches()

    def iter_modules(self, prefix: str = "") -> Iterator[tuple[str, bool]]:
        """Name each module and say whether it is a package, for `pkgutil.iter_modules`."""
        here = os.path.realpath(self._folder)
        for path in self._snapshot.files:
            file = Path(path)
            if str(file.parent) == here and file.name != "__init__.py":
                yield prefix + file.stem, False
            elif str(file.parent.parent) == here and file.name == "__init__.py":
                yield prefix + file.parent.name, True


class _Elsewhere:
    """Finds top-level modules that lie outside the recipe's folder, however the environment finds them (`pip install -e`)."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's file in the snapshot."""
        file = self._snapshot.modules.get(name)
        return _spec(name, file.removesuffix(".py").removesuffix("/__init__"), self._snapshot) if file else None


def _spec(name: str, place: str, snapshot: Snapshot) -> ModuleSpec | None:
    """The package or module at a path without its ending."""
    for file, inside in ((f"{place}/__init__.py", [place]), (f"{place}.py", None)):
        if _key(file) in snapshot.files:
            loader = _Loader(name, file, snapshot)
            return importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=inside)
    return None


def _key(path: str | os.PathLike[str]) -> str:
    folder, name = os.path.split(os.fspath(path))
    return f"{_real(folder).rstrip('/')}/{name}"


@lru_cache(maxsize=10_000)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
