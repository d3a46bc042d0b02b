"""The files of a person's project, which go to another machine before a command that needs them."""

from __future__ import annotations

import fnmatch
import getpass
import hashlib
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

from dtrain.common.errors import UsageError
from dtrain.common.files import PRIVATE_FILE, write_whole
from dtrain.common.lazy_dataclass import dataclass
from dtrain.launch import profiles
from dtrain.login.connection import Host
from dtrain.show import render

ROOTS = (".git", "pyproject.toml", "setup.py", profiles.PROJECT)
"""What the folder of a project has."""
IGNORE = ".dtrainignore"
"""File with patterns of names that stay here, one a line."""
STAYS = frozenset(
    {
        ".git", ".hg", ".svn", ".venv", ".tox", ".nox", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints",
        "__pycache__", "node_modules",
    }
)  # fmt: skip
SIGNS = ("pyvenv.cfg", "job.json", "events.jsonl")
"""Files of virtual environments and of runs, whose folders stay here."""
MOST_FILE_BYTES = 50_000_000
MOST_BYTES = 1_000_000_000
LISTED = 10


@dataclass(frozen=True)
class Project:
    """A folder of files that belong together."""

    root: Path

    @classmethod
    def of(cls, path: Path) -> Project:
        """Find the project of a file or folder: the nearest folder above with a sign of one, or the folder itself."""
        folder = path if path.is_dir() else path.parent
        above = [one for one in (folder, *folder.parents) if one != Path.home() and one.parent != one]
        return cls(next((one for one in above if any((one / sign).exists() for sign in ROOTS)), folder))

    @property
    def name(self) -> str:
        """Its name there: two projects of one name, or of two machines, have two."""
        whole = f"{getpass.getuser()}@{socket.gethostname()}:{self.root}"
        return f"{self.root.name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"

    def files(self) -> tuple[list[str], list[str]]:
        """List the files that go over, and those that stay since they are large; raises `UsageError` if all of them are too much."""
        patterns = _patterns(self.root / IGNORE)
        sent, large, total = list[str](), list[str](), 0
        for path, size in _walk(self.root, patterns):
            if size > MOST_FILE_BYTES:
                large.append(f"{path} ({render.size(size)})")
                continue
            sent.append(path)
            total += size
            if total > MOST_BYTES:
                raise UsageError(
                    f"{self.root} holds more than {render.size(MOST_BYTES)}, which would all go to the other machine",
                    f"Name what stays here in {self.root / IGNORE}, one pattern a line (data/*), and have data on that machine.",
                )
        return sorted(sent), large

    def send(self, host: Host, kept: Path) -> list[str]:
        """Bring the project to another machine, and remove there what is here no more. `kept` remembers what was sent. Returns what stays
        here since it is large."""
        sent, large = self.files()
        target = f"{host.base}/projects/{self.name}"
        host.send(self.root, sent, target)
        before = kept.read_text().split("\0") if kept.exists() else []
        if gone := sorted(set(before) - set(sent) - {""}):
            host.output(f"cd {shlex.quote(target)} && rm -f -- {shlex.join(gone)}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, "\0".join(sent).encode(), PRIVATE_FILE)
        return large


def _patterns(file: Path) -> list[str]:
    try:
        lines = [line.strip().strip("/") for line in file.read_text().splitlines()]
    except FileNotFoundError:
        return []
    return [line for line in lines if line and not line.startswith("#")]


def _walk(root: Path, patterns: list[str]) -> Iterator[tuple[str, int]]:
    """Yield path and size of every file that goes over."""
    for folder, folders, names in os.walk(root):
        if folder != str(root) and any(sign in names for sign in SIGNS):
            folders.clear()
            continue
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else f"{inside}/"
        folders[:] = sorted(one for one in folders if one not in STAYS and not _stays(prefix + one, patterns))
        for name in names:
            path, file = prefix + name, Path(folder, name)
            if not _stays(path, patterns) and (file.is_file() or file.is_symlink()):
                yield path, file.lstat().st_size


def _stays(path: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(path, one) or fnmatch.fnmatch(path.rpartition("/")[2], one) for one in patterns)
