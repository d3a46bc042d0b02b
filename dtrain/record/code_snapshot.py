"""The snapshot of the user's code in a run folder: one archive of source files, made when the run begins.

`recipe/…` holds what is below the recipe's folder, `elsewhere/…` the modules that this code imports from other folders that are no
installation (`PYTHONPATH`, `pip install -e`), and `code.json` what an archive cannot hold.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import site
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from dtrain.common.errors import StorageError, require_format
from dtrain.common.files import PRIVATE_FILE, write_whole
from dtrain.job import code, entrypoint
from dtrain.job.code import Snapshot, SnapshotFile
from dtrain.job.job import Job
from dtrain.record import origin
from dtrain.record.origin import Origin

FORMAT = 1
INDEX = "code.json"
RECIPE, ELSEWHERE = "recipe", "elsewhere"
NO_CODE = ("pyvenv.cfg", "events.jsonl")
"""Files of virtual environments and of runs, whose folders are left out."""
MOST_ENTRIES = 20_000
"""Directory entries that are looked at below one folder; data beside the code may have millions."""
MOST_BYTES = 32 << 20
"""A snapshot holds at most this much source text."""
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
IMPORT = re.compile(rb"[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([^#;]+))")


class _Collected:
    """Source files by path, folder after folder, until a limit is reached."""

    def __init__(self, job: Job, runs: Path) -> None:
        self.recipe = os.path.realpath(job.folder)
        self._path = [
            *job.code_folders,
            *(str(Path(job.folder, part)) for part in job.env.get("PYTHONPATH", "").split(os.pathsep) if part),
        ]
        self.sources: dict[str, bytes] = {}
        self.mtimes: dict[str, int] = {}
        self.folders: list[str] = []
        self.modules: dict[str, str] = {}
        self._visited = {os.path.realpath(runs)} - {self.recipe}
        self._bytes = 0

    def name(self, path: str) -> str:
        """The name of a file or folder in the archive."""
        if path == self.recipe:
            return RECIPE
        if path.startswith(self.recipe.rstrip("/") + "/"):
            return RECIPE + path[len(self.recipe.rstrip("/")) :]
        return ELSEWHERE + path

    def add_below(self, folder: str) -> None:
        """Add the source files in a folder and below it, the nearest first. Links to folders are not followed."""
        waiting, entries = deque([os.path.realpath(folder)]), 0
        while waiting and entries < MOST_ENTRIES:
            here = waiting.popleft()
            if here in self._visited or f"{here}/".startswith(_installed()):
                continue
            self._visited.add(here)
            try:
                found = sorted(os.scandir(here), key=lambda entry: entry.name)
            except OSError:
                continue
            entries += len(found)
            if any(entry.name in NO_CODE for entry in found):
                continue
            if all(self.add(entry.path) for entry in found if entry.name.endswith(".py")):
                self.folders.append(here)
            inner = (entry for entry in found if not entry.name.startswith(".") and entry.name not in SKIPPED)
            waiting += [entry.path for entry in inner if entry.is_dir(follow_symlinks=False)]

    def add(self, path: str) -> bool:
        """Add a file; False if it cannot be read or would be too much."""
        try:
            with open(path, "rb") as file:
                seen = os.fstat(file.fileno())
                if self._bytes + seen.st_size > MOST_BYTES:
                    return False
                self.sources[path] = file.read()
        except OSError:
            return False
        self.mtimes[path] = seen.st_mtime_ns
        self._bytes += seen.st_size
        return True

    def add_imported(self, module: str) -> None:
        """Add a top-level module, and those that the code imports, as far as they lie in other folders and no installation."""
        read: set[str] = set()
        seen = {"dtrain", *sys.stdlib_module_names}
        names = {module} - {""}
        while True:
            for name in sorted(names - seen):
                origin = "" if self._is_beside(name) else _outside(name, self._path)
                if origin:
                    self.modules[name] = origin
                    if origin.endswith("/__init__.py"):
                        self.add_below(str(Path(origin).parent))
                    if origin not in self.sources:
                        self.add(origin)
            seen |= names
            new = self.sources.keys() - read
            if not new:
                return
            read |= new
            names = set().union(*(_imported(self.sources[path]) for path in new))

    def _is_beside(self, name: str) -> bool:
        return any(
            f"{folder}/{name}.py" in self.sources or f"{folder}/{name}/__init__.py" in self.sources
            for folder in self.folders
        )


def _imported(source: bytes) -> set[str]:
    """The top-level modules that a source file imports, as its lines show them."""
    found: set[bytes] = set()
    at = source.find(b"import")
    while at >= 0:
        begin, end = source.rfind(b"\n", 0, at) + 1, source.find(b"\n", at) % (len(source) + 1)
        if line := IMPORT.match(source[begin:end]):
            found |= {name.split(b".")[0].split()[0] for name in (line[1] or line[2]).split(b",") if name.strip()}
        at = source.find(b"import", end)
    return {name.decode(errors="replace") for name in found}


@cache
def _installed() -> tuple[str, ...]:
    """Folders of Python itself and of installed packages."""
    paths = sysconfig.get_paths()
    places = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.realpath(place) + "/" for place in places)


def _outside(name: str, path: list[str]) -> str:
    """The source file of a top-level module, on this path or Python's own, that lies in no installation; '' for others."""
    try:
        spec = PathFinder.find_spec(name, path) or importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return ""
    origin = os.path.realpath(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else ""
    installed = origin.startswith(_installed()) or any(f"/{part}/" in origin for part in SKIPPED)
    return "" if installed else origin


def take(path: Path, job: Job, runs: Path) -> None:
    """Write the snapshot of a job's code to `path`, and the changes since its commit beside it; `runs`, the folder of runs, is left out."""
    collected = _Collected(job, runs)
    named = entrypoint.code_of(job)
    file = Path(job.folder, named).resolve()
    if file.suffix == ".py" and not file.is_relative_to(collected.recipe):
        collected.add_below(str(entrypoint.import_root(file)))
    for folder in job.code_folders:
        collected.add_below(folder)
    collected.add_imported("" if file.suffix == ".py" else named.partition(".")[0])
    index = {
        "format": FORMAT, "folder": job.folder, "folders": [collected.name(folder) for folder in collected.folders],
        "mtimes": {collected.name(path): time for path, time in collected.mtimes.items()},
        "modules": {name: collected.name(path) for name, path in collected.modules.items()},
    } | (facts := origin.now(Path(collected.recipe)))  # fmt: skip
    written = io.BytesIO()
    with ZipFile(written, "w") as archive:
        archive.writestr(INDEX, json.dumps(index, indent=1))
        for name, source in sorted((collected.name(one), source) for one, source in collected.sources.items()):
            archive.writestr(name, source)
    write_whole(path, written.getvalue(), PRIVATE_FILE)
    if facts["git"]:
        origin.keep_changes(Path(collected.recipe), path.with_suffix(".diff"), Path(os.path.realpath(runs)))


def origin_of(path: Path) -> Origin:
    """Where the code in a snapshot comes from; nothing is known of a run without one that can be read."""
    try:
        with ZipFile(path) as archive:
            return Origin.of_index(json.loads(archive.read(INDEX)))
    except (OSError, BadZipFile, ValueError, KeyError, AttributeError, NotImplementedError):
        return Origin()


def opened(path: Path, folder: str) -> Snapshot | None:
    """The snapshot of a run whose recipe's folder is `folder` on this machine; None if the run has none. Raises `StorageError` if it
    cannot be read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        with ZipFile(io.BytesIO(data)) as archive:
            index = json.loads(archive.read(INDEX))
            require_format(str(path), index.get("format"), FORMAT)
            listed = sorted(
                (one.filename, one.CRC, one.file_size) for one in archive.infolist() if one.filename != INDEX
            )
            sources = {name: SnapshotFile(archive.read(name), int(time)) for name, time in index["mtimes"].items()}
        recipe = os.path.realpath(folder)
        return Snapshot(
            hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12],
            {_path(name, recipe): file for name, file in sources.items()},
            frozenset(_path(name, recipe) for name in index["folders"]),
            {str(name): _path(entry, recipe) for name, entry in index["modules"].items()},
        )
    except (OSError, BadZipFile, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise StorageError(
            f"the snapshot of the run's code, {path}, cannot be read: {error}",
            "It was damaged. Take the code as it is now: dtrain resume RUN --code new.",
        ) from None


@contextmanager
def used(path: Path, folder: str) -> Iterator[Snapshot | None]:
    """Have this thread look at the user's code in the snapshot that `opened` gives, if there is one."""
    snapshot = opened(path, folder)
    with code.using(snapshot):
        yield snapshot


def _path(name: str, recipe: str) -> str:
    kind, _, rest = name.partition("/")
    return os.path.normpath(f"{recipe}/{rest}" if kind == RECIPE else f"/{rest}")


def edited(snapshot: Snapshot, job: Job, runs: Path) -> Iterator[tuple[str, Path]]:
    """How the code on disk differs from a snapshot: `edited`, `gone` or `new`, and the file."""
    now = _Collected(job, runs)
    for folder in job.code_folders:
        now.add_below(folder)
    for folder in snapshot.folders - set(now.folders):
        now.add_below(folder)
    for file in sorted(snapshot.files.keys() | now.sources.keys()):
        if file not in snapshot.files:
            yield "new", Path(file)
        elif file not in now.sources and not now.add(file):
            yield "gone", Path(file)
        elif snapshot.source(file) != now.sources[file]:
            yield "edited", Path(file)
