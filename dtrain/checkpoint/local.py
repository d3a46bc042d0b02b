"""Checkpoints in a folder that all nodes see, committed by one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from dtrain.checkpoint.store import (
    MANIFEST,
    QUARANTINED_KEPT,
    CheckpointInfo,
    CheckpointOrigin,
    CheckpointShard,
    Files,
    Manifest,
    Quarantined,
    Stays,
    chosen_step,
    manifest_of,
    parsed,
    refused,
    verify,
)
from dtrain.common import hooks
from dtrain.common.errors import CheckpointError
from dtrain.common.files import flush_folder, hashed, write_whole

_State = tuple[int, int, int, int]
"""Inode, size, and the times of the last change of a file and of its inode."""


class LocalCheckpointStore:
    """The checkpoints of one run in a folder that all its nodes see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, _State] = {}
        """Files that this store committed, and what told them from changed ones then."""

    def staging(self, attempt: int, step: int) -> Path:
        return self.folder / f".staging-{attempt:04d}-{step:08d}"

    def publish(self, attempt: int, step: int, files: Files) -> None:
        """Make the files visible, which they are already in a shared folder."""

    def clear_staging(self) -> None:
        for path in self.folder.glob(".staging-*"):
            shutil.rmtree(path, ignore_errors=True)

    def commit(self, attempt: int, step: int, parts: list[CheckpointShard], origin: CheckpointOrigin) -> CheckpointInfo:
        """Commit by one rename."""
        staged = self.staging(attempt, step)
        manifest = manifest_of(attempt, step, parts, origin)
        for name, (size, _) in manifest.files.items():
            if not (staged / name).is_file() or (staged / name).stat().st_size != size:
                raise CheckpointError(f"the checkpoint of step {step} misses {name}, or it was cut short")
        try:
            # Before anybody can find the checkpoint: what is written to from then on is read again before it is used.
            states = {name: _state(staged / name) for name in manifest.files}
            write_whole(staged / MANIFEST, manifest.text)
            flush_folder(staged)
            final = self.folder / f"step-{step:08d}"
            if final.exists():
                self._quarantine(final)
            os.rename(staged, final)
            hooks.reach("renamed", step, attempt)
            flush_folder(self.folder)
            self._known |= {final / name: state for name, state in states.items()}
        except OSError as error:
            raise CheckpointError(f"the checkpoint of step {step} was not committed: {error}") from error
        return manifest.committed(final.name)

    def abandon(self, attempt: int, step: int) -> None:
        shutil.rmtree(self.staging(attempt, step), ignore_errors=True)

    def steps(self) -> list[int]:
        return [_step(path) for path in self._committed()]

    def latest_valid(self) -> Iterator[CheckpointInfo | Quarantined]:
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            manifest = parsed(_text(path / MANIFEST))
            problem = manifest if isinstance(manifest, str) else verify(manifest.files, partial(self._damage, path))
            if problem:
                yield Quarantined(self._quarantine(path).name, problem)
                continue
            assert not isinstance(manifest, str)
            yield manifest.committed(path.name)
            return

    def verified(self, step: int | None = None) -> tuple[Path, Manifest]:
        steps = self.steps()
        chosen = chosen_step(steps, step)
        path = next(path for path in self._committed() if _step(path) == chosen)
        manifest = parsed(_text(path / MANIFEST))
        problem = manifest if isinstance(manifest, str) else verify(manifest.files, partial(self._damage, path))
        if isinstance(manifest, str) or problem:
            raise refused(chosen, problem, steps)
        return path, manifest

    def prune(self, stays: Stays) -> None:
        kept = stays(self.steps())
        for path in self._committed():
            if _step(path) in kept:
                continue
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
            self._known = {file: state for file, state in self._known.items() if file.parent != path}
        damaged = sorted(self.folder.glob("damaged-*"), key=lambda path: path.stat().st_mtime)
        for path in damaged[:-QUARANTINED_KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    def local_folder(self, name: str, attempt: int, *, whole: bool = True) -> Path:
        return self.folder / name

    def fetch(self, folder: Path, attempt: int, files: Collection[str]) -> None:
        """Fetch files, all of which are here already."""

    def _damage(self, folder: Path, name: str, entry: tuple[int, str]) -> str:
        """Describe what is wrong with a file, or ''. A file that this store committed and that was not written since
        is not read again."""
        path, (size, digest) = folder / name, entry
        try:
            state = _state(path)
            if state == self._known.get(path):
                return ""
            if state[1] != size:
                return f"has {state[1]} bytes instead of {size}"
            return "" if hashed(path)[1] == digest else "is not what was written (its digest differs)"
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    def _committed(self) -> list[Path]:
        """Folders of committed checkpoints, newest first."""
        return sorted((path for path in self.folder.glob("step-*") if (path / MANIFEST).is_file()), reverse=True)

    def _quarantine(self, path: Path) -> Path:
        """Move a checkpoint out of the way, but keep it: somebody may want to look."""
        aside = self.folder / f"damaged-{path.name}"
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder / f"damaged-{path.name}.{number}"
        os.rename(path, aside)
        return aside


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _text(path: Path) -> bytes | str | None:
    """Read a manifest; an unreadable one counts as none."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _state(path: Path) -> _State:
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
