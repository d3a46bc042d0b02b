"""Where programs leave what their framework recorded of their collectives, and the pipes by which they are asked for it.

A program makes its pipe, and writes the record when something is written into it; see `dtrain.api.strategy.Strategy.gpu_environment`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dtrain.common.files import private_folder, users_folder
from dtrain.record.folder import RunDir

BASE = "/tmp"
"""Of the node: not every file system that nodes share has pipes."""
FOLDER = "pipes"
ENDING = ".pipe"


def file_prefix(run: RunDir, attempt: int) -> Path:
    """Return what the names of the records of an attempt begin with; the rank follows."""
    return run.logs / f"collectives-{attempt:04d}-"


def file(run: RunDir, attempt: int, rank: int) -> Path:
    """Return the path of the record of one rank."""
    prefix = file_prefix(run, attempt)
    return prefix.with_name(f"{prefix.name}{rank}")


def pipe_prefix(run: RunDir, attempt: int) -> Path:
    """Return what the names of an attempt's pipes begin with; rank and ENDING follow. Raises `OSError` if there can be none."""
    return private_folder(users_folder(BASE) / FOLDER) / f"{run.id}-{attempt}-"


def ask(run: RunDir, attempt: int, rank: int) -> bool:
    """Ask the program of a rank on this node to write its record; whether it listens. Does not wait."""
    with suppress(OSError):
        descriptor = os.open(_pipe(run, attempt, rank), os.O_WRONLY | os.O_NONBLOCK)
        try:
            file(run, attempt, rank).unlink(missing_ok=True)
            return os.write(descriptor, b"1") == 1
        finally:
            os.close(descriptor)
    return False


def forget(run: RunDir, attempt: int, rank: int) -> None:
    """Remove the pipe of a program that has ended."""
    with suppress(OSError):
        _pipe(run, attempt, rank).unlink(missing_ok=True)


def read(run: RunDir, attempt: int) -> dict[int, bytes]:
    """Read the records of all ranks (rank → record), of all that were written."""
    prefix, found = file_prefix(run, attempt), dict[int, bytes]()
    for path in run.logs.glob(f"{prefix.name}*"):
        rank = path.name.removeprefix(prefix.name)
        with suppress(OSError):
            if rank.isdigit():
                found[int(rank)] = path.read_bytes()
    return found


def _pipe(run: RunDir, attempt: int, rank: int) -> Path:
    prefix = Path(BASE) / f"dtrain-{os.getuid()}" / FOLDER / f"{run.id}-{attempt}-"
    return prefix.with_name(f"{prefix.name}{rank}{ENDING}")
