"""Leases of this machine's GPUs, so that two runs of a user do not take the same one: a lock file for each, by its UUID.

Who holds a lease has its file locked for sharing: the supervisor, and from its start on the agent, so that the lease lasts as long as one of
them lives. Who takes one must be able to lock the file alone. All of that happens under one more lock, the turn, so that nobody who only looks
is taken for a holder.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from dtrain.common import gpu
from dtrain.common.errors import ClusterError
from dtrain.common.files import PRIVATE_FILE, private_folder, users_folder
from dtrain.common.gpu import Gpu
from dtrain.common.lazy_dataclass import dataclass

BASE = "/tmp"
"""Not TMPDIR, which two terminals may have different: they must find each other."""
FOLDER = "gpus"
TURN = "turn"
SUFFIX = ".lease"


@dataclass(frozen=True)
class Holder:
    """Who has a GPU."""

    gpu: str
    """Its number or name, for people."""
    run: str
    folder: str
    """Of the run."""
    pid: int
    """Of the run's supervisor."""
    since: float
    """Seconds since 1970."""


def told(holders: Sequence[Holder]) -> str:
    """Say who has which GPUs, in the middle of a sentence."""
    gpus: dict[tuple[str, int], list[str]] = {}
    since: dict[tuple[str, int], float] = {}
    for one in holders:
        gpus.setdefault((one.run, one.pid), []).append(one.gpu)
        since[one.run, one.pid] = one.since
    return "; ".join(
        f"{'GPU' if len(names) == 1 else 'GPUs'} {', '.join(names)} {'is' if len(names) == 1 else 'are'} taken by {run} "
        f"(process {pid}, since {time.strftime('%H:%M', time.localtime(since[run, pid]))})"
        for (run, pid), names in gpus.items()
    )


class Leases:
    """The GPUs that this process holds."""

    def __init__(self) -> None:
        self.gpus: tuple[Gpu, ...] = ()
        self._files: list[IO[str]] = []

    def take(self, wanted: int, among: Sequence[Gpu], run: Path) -> list[Holder]:
        """Take so many of these GPUs, all or none; does not wait. Returns who has the others if too few are free."""
        with _turn() as folder:
            free: list[tuple[Gpu, IO[str]]] = []
            holders = []
            for one in among:
                file = _opened(folder, one.uuid)
                if len(free) < wanted and _lock(file, fcntl.LOCK_EX):
                    free.append((one, file))
                else:
                    holders += [] if len(free) == wanted else _holder(file)
                    file.close()
            if len(free) < wanted:
                for _, file in free:
                    file.close()
                return holders
            for one, file in free:
                file.truncate(0)
                mine = Holder(one.name, run.name, str(run), os.getpid(), time.time())
                file.write(json.dumps(asdict(mine)))
                file.flush()
                fcntl.flock(file, fcntl.LOCK_SH)
        self.gpus, self._files = tuple(one for one, _ in free), [file for _, file in free]
        return []

    def release(self) -> None:
        """Let go of them; does nothing if there are none."""
        for file in self._files:
            file.close()
        self.gpus, self._files = (), []


def join(uuids: Sequence[str]) -> list[IO[str]]:
    """Hold leases that the supervisor took, too, for as long as these files are open."""
    files = []
    with suppress(OSError, ClusterError), _turn() as folder:  # the supervisor holds them in any case
        for uuid in uuids:
            file = _opened(folder, uuid)
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            files.append(file)
    return files


def held() -> list[Holder]:
    """List everyone who has a GPU of this machine now, as far as this user's runs go."""
    found = []
    if (Path(BASE) / f"dtrain-{os.getuid()}" / FOLDER).is_dir():
        with suppress(OSError, ClusterError), _turn() as folder:
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                with open(path) as file:
                    found += [] if _lock(file, fcntl.LOCK_EX) else _holder(file)
    return found


def of_runs() -> dict[str, list[str]]:
    """Return the GPUs that each run has now: folder → numbers or names."""
    found: dict[str, list[str]] = {}
    for one in held():
        found.setdefault(one.folder, []).append(one.gpu)
    return found


def choice(named: Sequence[int | str]) -> list[Gpu]:
    """Return the GPUs that a run may take: those that its recipe names, or all, of the ones that CUDA_VISIBLE_DEVICES leaves. Raises `ClusterError`
    for a name that means none of them."""
    seen = gpu.visible()
    if not named:
        return seen
    there = gpu.installed()
    chosen = [gpu.found_in(there, str(name)) for name in named]
    for one in chosen:
        if one.uuid not in [other.uuid for other in seen]:
            limited = f" of {gpu.VISIBLE}={os.environ[gpu.VISIBLE]}" if gpu.VISIBLE in os.environ else ""
            known = ", ".join(other.name for other in seen) or "none"
            raise ClusterError(
                f"resources.gpus names {one.name}, and the GPUs{limited} are {known}", "Name some of those."
            )
    return list({one.uuid: one for one in chosen}.values())


@contextmanager
def _turn() -> Iterator[Path]:
    try:
        folder = private_folder(users_folder(BASE) / FOLDER)
        file = open(folder / TURN, "a", opener=_private)
    except OSError as error:
        raise ClusterError(
            f"cannot keep account of who uses which GPU: {error.filename}: {error.strerror}",
            "It must be a folder of yours alone, mode 700: mend or remove it.",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def _opened(folder: Path, uuid: str) -> IO[str]:
    return open(folder / f"{uuid.replace('/', '_')}{SUFFIX}", "a+", opener=_private)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, PRIVATE_FILE)


def _lock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: IO[str]) -> list[Holder]:
    file.seek(0)
    try:
        return [Holder(**json.loads(file.read()))]
    except (ValueError, TypeError):  # of another version of dtrain
        return [Holder(Path(file.name).stem, "another run", "", 0, time.time())]
