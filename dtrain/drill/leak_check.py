"""Finds what a run on this machine has left behind: processes, shared memory, temporary files. Linux only."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from dtrain.checkpoint.local import ATTEMPT
from dtrain.common.processes import alive, children, signal_process

PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
SETTLE_SECONDS = 10.0
"""In which what ends may end."""


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends, so that none escapes (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


class Leftovers:
    """The leftovers of one run; constructed before it begins."""

    def __init__(self) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="dtrain-drill-"))
        """The run's folder for temporary files."""
        self._shared = _segments()

    def found(self, run: Path, usual: Collection[str]) -> list[str]:
        """After the run's end: one line for each kind of thing that is left. Processes are ended, files removed. `usual` are
        temporary files that the job leaves undisturbed, like the cache of a compiler."""
        return [line for line in (_processes(), self._shared_memory(), self._files(usual), _aside(run)) if line]

    def temporary_files(self) -> list[str]:
        """Return the temporary files that are there now."""
        return sorted(path.name for path in self.temporary.iterdir())

    def _shared_memory(self) -> str:
        new = _segments() - self._shared
        orphaned = sorted(name for name in new if not _is_used(name))
        return f"shared memory: {', '.join(orphaned)}" if orphaned else ""

    def _files(self, usual: Collection[str]) -> str:
        names = [name for name in self.temporary_files() if name not in usual]
        shutil.rmtree(self.temporary, ignore_errors=True)
        return f"temporary files: {', '.join(names)}" if names else ""


def _processes() -> str:
    """Every process below this one should have ended."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := _below(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.05)
    names = [f"{_name(pid)} ({pid})" for pid in left]
    for pid in left:
        signal_process(pid, signal.SIGKILL)
    time.sleep(0.1 if left else 0)
    _below(os.getpid())
    return f"processes: {', '.join(names)}" if names else ""


def _below(pid: int) -> list[int]:
    """The living processes below one; those of its own children that have ended are waited for."""
    found = list[int]()
    for child in children(pid):
        if alive(child):
            found += [child, *_below(child)]
        elif pid == os.getpid():
            with suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
    return found


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "process"


def _segments() -> set[str]:
    """Return the shared memory segments of this user."""
    found = set()
    with suppress(OSError):
        for path in SHARED_MEMORY.iterdir():
            with suppress(OSError):
                if path.stat().st_uid == os.getuid():
                    found.add(path.name)
    return found


def _is_used(name: str) -> bool:
    """Whether some process has it mapped or open: then it is another program's."""
    target = str(SHARED_MEMORY / name)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if target in (process / "maps").read_text():
                return True
            if any(str(link.readlink()) == target for link in (process / "fd").iterdir()):
                return True
    return False


def _aside(run: Path) -> str:
    """Files that dtrain writes aside in a run's folder, and renames or removes."""
    folders = [run, *(path for path in run.iterdir() if path.is_dir())]
    hidden = (path for folder in folders for path in folder.glob(".*") if not path.name.startswith(ATTEMPT))
    names = sorted(str(path.relative_to(run)) for path in hidden)
    return f"files in its folder: {', '.join(names)}" if names else ""
