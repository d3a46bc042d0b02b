"""Checkpoints as the supervisor sees them: staged by the workers, committed by one rename, verified before use.

Only the supervisor commits, and only parts of the attempt it runs now: a stale worker can write, but not be believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError
from dtrain.rundir import write_json

MANIFEST = "manifest.json"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Part:
    """What one worker wrote: name → size in bytes and sha256."""

    files: dict[str, tuple[int, str]]
    weights: str


@dataclass(frozen=True)
class Committed:
    """A whole checkpoint."""

    path: Path
    step: int
    """Steps that are done in it."""
    bytes: int
    weights: str
    """Hex digest over all workers' model state; equal weights give equal digests at the same strategy and size."""


def hashed(path: Path) -> tuple[int, str]:
    """Size and sha256 of a file; the data is flushed to disk first, so that a rename that follows never precedes it."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def flush_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def staging(self, attempt: int, step: int) -> Path:
        """Where the workers of an attempt write the checkpoint of a step; no reader looks there."""
        return self.folder / f".staging-{attempt:04d}-{step:08d}"

    def clear_staging(self) -> None:
        """Drop what earlier attempts left unfinished."""
        for path in self.folder.glob(".staging-*"):
            shutil.rmtree(path, ignore_errors=True)

    def commit(self, attempt: int, step: int, parts: list[Part], facts: dict[str, Any]) -> Committed:
        """Make the staged parts a checkpoint; raises `CheckpointError` where a file is not what its worker wrote."""
        staged = self.staging(attempt, step)
        files = {name: entry for part in parts for name, entry in part.files.items()}
        for name, (size, _) in files.items():
            if not (staged / name).is_file() or (staged / name).stat().st_size != size:
                raise CheckpointError(f"the checkpoint of step {step} misses {name}, or it was cut short")
        weights = hashlib.sha256("".join(part.weights for part in parts).encode()).hexdigest()
        size = sum(size for size, _ in files.values())
        manifest = {"step": step, "attempt": attempt, "weights": weights, "bytes": size, "files": files} | facts
        try:
            write_json(staged / MANIFEST, manifest | {"sha256": _digest(manifest)})
            flush_folder(staged)
            final = self.folder / f"step-{step:08d}"
            if final.exists():
                self.set_aside(final)
            os.rename(staged, final)
            flush_folder(self.folder)
        except OSError as error:
            raise CheckpointError(f"the checkpoint of step {step} was not committed: {error}") from error
        return Committed(final, step, size, weights)

    def abandon(self, attempt: int, step: int) -> None:
        """Drop a staged checkpoint that cannot be finished."""
        shutil.rmtree(self.staging(attempt, step), ignore_errors=True)

    def committed(self) -> list[Path]:
        """Folders of committed checkpoints, newest first; not verified."""
        return sorted((path for path in self.folder.glob("step-*") if (path / MANIFEST).is_file()), reverse=True)

    def newest_whole(self) -> Iterator[Committed | tuple[Path, str]]:
        """Walk from the newest checkpoint back: yields (where it was set aside, what is wrong) for each damaged one, and
        ends with the first whole one, if there is any."""
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            if problem := damage(path):
                yield self.set_aside(path), problem
                continue
            manifest = json.loads((path / MANIFEST).read_text())
            yield Committed(path, int(manifest["step"]), int(manifest["bytes"]), str(manifest["weights"]))
            return

    def set_aside(self, path: Path) -> Path:
        """Move a checkpoint out of the way, but keep it: somebody may want to look."""
        aside = self.folder / f"damaged-{path.name}"
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder / f"damaged-{path.name}.{number}"
        os.rename(path, aside)
        return aside

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep`; a half-deleted one has no manifest and is no checkpoint."""
        for path in self.committed()[keep:]:
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def damage(path: Path) -> str:
    """What is wrong with a checkpoint folder, or '' where every byte is what was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = {name: (int(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
        if manifest.pop("sha256") != _digest(manifest):
            return "its manifest is not what was written (sha256 differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {type(error).__name__}: {error}"
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=8) as pool:
        for name, problem in zip(
            files, pool.map(lambda name: _file_damage(path / name, *files[name]), files), strict=True
        ):
            if problem:
                return f"{name} {problem}"
    return ""


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _file_damage(path: Path, size: int, digest: str) -> str:
    try:
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes instead of {size}"
        return "" if hashed(path)[1] == digest else "is not what was written (sha256 differs)"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
