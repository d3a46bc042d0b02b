"""Checkpoints in a folder that all nodes see, committed by one rename.

The name of a staged or committed checkpoint holds the number of its attempt, which no other attempt has. Whatever this store saw
before its lease was last checked is therefore of its own supervisor or of earlier ones, and it touches nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from dtrain.checkpoint.names import CheckpointName, name_of, newest_by_step, newest_first
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
from dtrain.common.errors import CheckpointError, StorageError
from dtrain.common.files import flush_folder, hashed, write_whole
from dtrain.record.lock import Lease

_State = tuple[int, int, int, int]
"""Inode, size, and the times of the last change of a file and of its inode."""
STAGING = ".staging-"
DROPPED = ".dropped-"
ATTEMPT = ".attempt-"


class LocalCheckpointStore:
    """The checkpoints of one run in a folder that all its nodes see; `lease` is the supervisor's, for its own store."""

    def __init__(self, folder: Path, lease: Lease | None = None) -> None:
        self.folder = folder
        self._lease = lease
        self._known: dict[Path, _State] = {}
        """Files that this store committed, and what told them from changed ones then."""

    def new_attempt(self, after: int) -> int:
        """Reserve a number by making an empty file of its name."""
        taken = (path.name.removeprefix(ATTEMPT) for path in self.folder.glob(f"{ATTEMPT}*"))
        number = max([after, *(int(text) for text in taken if text.isdigit())]) + 1
        while not self._took(number):
            number += 1
        flush_folder(self.folder)
        self._check_lease()
        return number

    def _took(self, number: int) -> bool:
        try:
            os.close(os.open(self.folder / f"{ATTEMPT}{number:04d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        return True

    def staging(self, attempt: int, step: int) -> Path:
        return self.folder / f"{STAGING}{attempt:04d}-{step:08d}"

    def publish(self, attempt: int, step: int, files: Files) -> None:
        """Make the files visible, which they are already in a shared folder."""

    def clear_staging(self) -> None:
        staged = list(self.folder.glob(f"{STAGING}*"))
        self._check_lease()
        for path in (*staged, *self.folder.glob(f"{DROPPED}*")):
            self._drop(path)

    def _drop(self, path: Path) -> None:
        """Delete a staged or committed checkpoint, first of all its name: nobody commits or reads a part of it."""
        aside = path.with_name(f"{DROPPED}{path.name.removeprefix(DROPPED)}")
        with suppress(OSError):
            os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def commit(self, attempt: int, step: int, parts: list[CheckpointShard], origin: CheckpointOrigin) -> CheckpointInfo:
        """Commit by one rename, to a name that nothing else has."""
        staged = self.staging(attempt, step)
        manifest = manifest_of(attempt, step, parts, origin)
        for name, (size, _) in manifest.files.items():
            if not (staged / name).is_file() or (staged / name).stat().st_size != size:
                raise CheckpointError(f"the checkpoint of step {step} misses {name}, or it was cut short")
        try:
            # Before anybody can find the checkpoint: what is written to from then on is read again before it is used.
            states = {name: _state(staged / name) for name in manifest.files}
            write_whole(staged / MANIFEST, manifest.text)
            final = self.folder / name_of(attempt, step)
            self._check_lease()
            os.rename(staged, final)
            hooks.reach("renamed", step, attempt)
            flush_folder(self.folder)
            self._known |= {final / name: state for name, state in states.items()}
        except (OSError, StorageError) as error:
            raise CheckpointError(f"the checkpoint of step {step} was not committed: {error}") from error
        return manifest.committed(final.name)

    def abandon(self, attempt: int, step: int) -> None:
        self._drop(self.staging(attempt, step))

    def steps(self) -> list[int]:
        return list(newest_by_step(self._committed()))

    def latest_valid(self) -> Iterator[CheckpointInfo | Quarantined]:
        for name in newest_first(path.name for path in self.folder.glob("step-*")):
            path = self.folder / name.text
            manifest = parsed(_text(path / MANIFEST))
            problem = manifest if isinstance(manifest, str) else verify(manifest.files, partial(self._damage, path))
            if problem:
                self._check_lease()
                yield Quarantined(self._quarantine(path).name, problem)
                continue
            assert not isinstance(manifest, str)
            yield manifest.committed(path.name)
            return

    def verified(self, step: int | None = None) -> tuple[Path, Manifest]:
        newest = newest_by_step(self._committed())
        chosen = chosen_step(list(newest), step)
        path = self.folder / newest[chosen].text
        manifest = parsed(_text(path / MANIFEST))
        problem = manifest if isinstance(manifest, str) else verify(manifest.files, partial(self._damage, path))
        if isinstance(manifest, str) or problem:
            raise refused(chosen, problem, list(newest))
        return path, manifest

    def prune(self, stays: Stays) -> None:
        committed = self._committed()
        damaged = sorted(self.folder.glob("damaged-*"), key=lambda path: path.stat().st_mtime)
        self._check_lease()
        newest = newest_by_step(committed)
        kept = {newest[step] for step in stays(list(newest))}
        for path in (self.folder / name.text for name in committed if name not in kept):
            self._drop(path)
            self._known = {file: state for file, state in self._known.items() if file.parent != path}
        for path in damaged[:-QUARANTINED_KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    def room(self) -> int | None:
        return shutil.disk_usage(self.folder).free

    def local_folder(self, name: str, attempt: int, *, whole: bool = True) -> Path:
        return self.folder / name

    def fetch(self, folder: Path, attempt: int, files: Collection[str]) -> None:
        """Fetch files, all of which are here already."""

    def _check_lease(self) -> None:
        if self._lease:
            self._lease.check()

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

    def _committed(self) -> list[CheckpointName]:
        """The committed checkpoints, newest first."""
        return newest_first(path.parent.name for path in self.folder.glob(f"step-*/{MANIFEST}"))

    def _quarantine(self, path: Path) -> Path:
        """Move a checkpoint out of the way, but keep it: somebody may want to look."""
        aside = self.folder / f"damaged-{path.name}"
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder / f"damaged-{path.name}.{number}"
        os.rename(path, aside)
        return aside


def _text(path: Path) -> bytes | str | None:
    """Read a manifest; an unreadable one counts as none."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _state(path: Path) -> _State:
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
