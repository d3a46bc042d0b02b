"""Checkpoints on remote storage: written and hashed on the node, copied there, committed by their manifest, which comes last.

An object store cannot rename, so every attempt writes into folders of its own and a folder without a manifest is nothing:
what a stale worker still copies is never believed. A manifest is created, never replaced: `GIVEN_UP` in its place says that the checkpoint is
given up for good, so that a supervisor that was held up cannot commit what its successor has dropped. Copies on a node stay as a
cache, each file checked before it is used.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from dtrain.checkpoint.names import CheckpointName, name_of, newest_by_step, newest_first, parsed_name
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
from dtrain.checkpoint.tensor_file import SUFFIX
from dtrain.common.errors import CheckpointError, StorageError
from dtrain.common.files import hashed, write_whole
from dtrain.record.lock import Lease, LeaseTaken
from dtrain.storage.object_store import CHECKPOINTS, ObjectStore

DAMAGED = "damaged.json"
GIVEN_UP = b"given up"
"""In the place of a manifest, and shorter than any: nobody may commit this checkpoint."""
ATTEMPTS = "attempts"
"""Folder of the numbers of attempts that are taken, with the marks of the supervisors that took them."""
CACHED = 2


class RemoteCheckpointStore:
    """The checkpoints of one run at a URL; `cache` is a folder of this node, `lease` the supervisor's, for its own store."""

    def __init__(self, cache: Path, remote: ObjectStore, lease: Lease | None = None) -> None:
        self._cache = cache
        self._remote = remote
        self._lease = lease
        self._own: set[int] = set()
        """Attempts of this supervisor: nobody else commits their checkpoints."""
        self._known: dict[str, str] = {}
        """Objects of checkpoints that this store committed, and their versions then."""

    def new_attempt(self, after: int) -> int:
        """Reserve a number by making an object of its name."""
        taken = (name.rpartition("/")[2] for name in self._remote.sizes(ATTEMPTS))
        number = max([after, *(int(text) for text in taken if text.isdigit())]) + 1
        mark = self._lease.mark if self._lease else ""
        while not self._remote.create(f"{ATTEMPTS}/{number:08d}", f"attempt {number} of {mark}".encode()):
            number += 1
        self._check_lease()
        self._own.add(number)
        return number

    def staging(self, attempt: int, step: int) -> Path:
        return self._cache / name_of(attempt, step)

    def publish(self, attempt: int, step: int, files: Files) -> None:
        """Copy the files to the storage and remove older copies on this node."""
        name = parsed_name(name_of(attempt, step))
        assert name
        for file in files:
            self._remote.put(self._cache / name.text / file, f"{CHECKPOINTS}/{name.text}/{file}")
        cached = newest_first(path.name for path in self._cache.glob("step-*"))
        for old in [one for one in cached if one <= name][CACHED:]:
            shutil.rmtree(self._cache / old.text, ignore_errors=True)

    def clear_staging(self) -> None:
        folders = self._folders()
        self._check_lease()
        for text, files in folders.items():
            name = parsed_name(text)
            uncommitted = files.get(MANIFEST) in (None, len(GIVEN_UP)) and DAMAGED not in files
            if name and uncommitted and self._given_up(name, files):
                self._remote.delete(f"{CHECKPOINTS}/{text}/{file}" for file in files if file != MANIFEST)

    def _given_up(self, name: CheckpointName, files: dict[str, int]) -> bool:
        """Keep everybody else from committing a checkpoint; False: it has just been committed."""
        known = MANIFEST in files or name.attempt in self._own
        return known or self._remote.create(f"{CHECKPOINTS}/{name.text}/{MANIFEST}", GIVEN_UP)

    def commit(self, attempt: int, step: int, parts: list[CheckpointShard], origin: CheckpointOrigin) -> CheckpointInfo:
        """Commit by creating the manifest, after what explains the checkpoint is there."""
        name = name_of(attempt, step)
        manifest = manifest_of(attempt, step, parts, origin)
        try:
            there = self._remote.sizes(f"{CHECKPOINTS}/{name}")
            for file, (size, _) in manifest.files.items():
                if there.get(f"{CHECKPOINTS}/{name}/{file}") != size:
                    raise CheckpointError(f"the checkpoint of step {step} misses {file}, or it was cut short")
            with suppress(StorageError):  # without it, they are read before they are used
                self._known = self._remote.versions(f"{CHECKPOINTS}/{name}")
            if self._lease:
                self._lease.push_history()
            self._check_lease()
            if not self._remote.create(f"{CHECKPOINTS}/{name}/{MANIFEST}", manifest.text.encode()):
                raise LeaseTaken(f"another supervisor gave up the checkpoint of step {step} of attempt {attempt}")
        except StorageError as error:
            raise CheckpointError(f"the checkpoint of step {step} was not committed: {error.message}") from error
        return manifest.committed(name)

    def _check_lease(self) -> None:
        if self._lease:
            self._lease.check()

    def abandon(self, attempt: int, step: int) -> None:
        name = name_of(attempt, step)
        shutil.rmtree(self._cache / name, ignore_errors=True)
        with suppress(StorageError):
            self._delete(name, self._folders().get(name, {}))

    def steps(self) -> list[int]:
        return list(newest_by_step(self._committed()))

    def latest_valid(self) -> Iterator[CheckpointInfo | Quarantined]:
        for name in (one.text for one in self._committed()):
            manifest = parsed(self._remote.read(f"{CHECKPOINTS}/{name}/{MANIFEST}"))
            versions = self._remote.versions(f"{CHECKPOINTS}/{name}")
            changed = {path for path, version in versions.items() if self._known.get(path) != version}
            check = partial(self._wrong, name, versions.keys() - changed)
            problem = manifest if isinstance(manifest, str) else verify(manifest.files, check)
            if problem:
                self._quarantine(name)
                yield Quarantined(name, problem)
                continue
            assert not isinstance(manifest, str)
            yield manifest.committed(name)
            return

    def verified(self, step: int | None = None) -> tuple[Path, Manifest]:
        """Verify a checkpoint: files that are here are hashed, the others fetched."""
        newest = newest_by_step(self._committed())
        chosen = chosen_step(list(newest), step)
        folder = self._cache / newest[chosen].text
        manifest = self._manifest_here(folder)
        problem = manifest if isinstance(manifest, str) else verify(manifest.files, partial(self._brought, folder))
        if isinstance(manifest, str) or problem:
            raise refused(chosen, problem, list(newest))
        return folder, manifest

    def prune(self, stays: Stays) -> None:
        """Remove checkpoints; of several attempts' checkpoints of one step, the last one stays."""
        with suppress(StorageError):
            folders = self._folders()
            self._check_lease()
            committed = newest_first(name for name, files in folders.items() if _is_committed(files))
            damaged = newest_first(name for name, files in folders.items() if DAMAGED in files)
            newest = newest_by_step(committed)
            kept = {newest[step] for step in stays(list(newest))}
            for name in [*(one for one in committed if one not in kept), *damaged[QUARANTINED_KEPT:]]:
                self._delete(name.text, folders[name.text])

    def room(self) -> int | None:
        return None

    def local_folder(self, name: str, attempt: int, *, whole: bool = True) -> Path:
        """Return a folder whose missing files come when they are fetched."""
        folder = self._cache / name
        manifest = self._manifest_here(folder)
        if isinstance(manifest, str):
            raise CheckpointError(f"the checkpoint {name} cannot be used: {manifest}")
        self.fetch(folder, attempt, [file for file in manifest.files if whole or not file.endswith(SUFFIX)])
        return folder

    def _manifest_here(self, folder: Path) -> Manifest | str:
        """Bring a manifest here; what is wrong with it."""
        with _alone(folder, MANIFEST):
            data = self._remote.read(f"{CHECKPOINTS}/{folder.name}/{MANIFEST}") or b""
            manifest = parsed(data or None)
            if not isinstance(manifest, str):
                write_whole(folder / MANIFEST, data.decode())  # another rank may just be reading it
        return manifest

    def fetch(self, folder: Path, attempt: int, files: Collection[str]) -> None:
        """Fetch files: one worker does it for all of the node's, each file once an attempt."""
        manifest = parsed((folder / MANIFEST).read_bytes())
        assert not isinstance(manifest, str), "it was looked at before it was kept"
        wanted = {file: manifest.files[file] for file in files}
        damaged = verify(wanted, partial(self._fetched, folder, attempt))
        if damaged:
            raise CheckpointError(f"in the checkpoint {folder.name}, {damaged}")

    def _fetched(self, folder: Path, attempt: int, file: str, entry: tuple[int, str]) -> str:
        """Have a file on this node; what is wrong with it then, or ''."""
        good = folder / f".good-{attempt}-{file}"
        with _alone(folder, file):
            if good.exists():
                return ""
            problem = self._copied(folder, file, entry)
            if not problem:
                good.touch()
        return problem

    def _brought(self, folder: Path, file: str, entry: tuple[int, str]) -> str:
        """Have a file on this node, whatever was believed of it before; what is wrong with it then, or ''."""
        with _alone(folder, file):
            return self._copied(folder, file, entry)

    def _copied(self, folder: Path, file: str, entry: tuple[int, str]) -> str:
        if not ((folder / file).is_file() and hashed(folder / file) == entry):
            self._remote.get(f"{CHECKPOINTS}/{folder.name}/{file}", folder / file, entry[0])
            if hashed(folder / file) != entry:
                return "was damaged on its way to this node, or is not what was written (its digest differs)"
        return ""

    def _folders(self) -> dict[str, dict[str, int]]:
        """Name of every checkpoint folder there → its files and their sizes."""
        found: dict[str, dict[str, int]] = {}
        for path, size in self._remote.sizes(CHECKPOINTS).items():
            _, name, file = path.split("/", 2)
            found.setdefault(name, {})[file] = size
        return found

    def _committed(self) -> list[CheckpointName]:
        """The committed ones, newest first."""
        return newest_first(name for name, files in self._folders().items() if _is_committed(files))

    def _wrong(self, name: str, known: set[str], file: str, entry: tuple[int, str]) -> str:
        """Describe what is wrong with an object, or ''. An object that this store committed and that was not written
        since is not read again."""
        path = f"{CHECKPOINTS}/{name}/{file}"
        try:
            good = path in known or self._remote.hashed(path) == entry
            return "" if good else "is not what was written (its digest differs)"
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return "is gone"
            raise

    def _quarantine(self, name: str) -> None:
        """Keep it for whoever wants to look, but not as a checkpoint."""
        manifest = self._remote.read(f"{CHECKPOINTS}/{name}/{MANIFEST}") or b""
        self._check_lease()
        self._remote.write(f"{CHECKPOINTS}/{name}/{DAMAGED}", manifest)
        self._remote.delete([f"{CHECKPOINTS}/{name}/{MANIFEST}"])

    def _delete(self, name: str, files: dict[str, int]) -> None:
        """The manifest first: half deleted, it is no checkpoint."""
        ordered = sorted(files, key=lambda file: file != MANIFEST)
        self._remote.delete(f"{CHECKPOINTS}/{name}/{file}" for file in ordered)


def _is_committed(files: dict[str, int]) -> bool:
    return files.get(MANIFEST, 0) > len(GIVEN_UP)


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Let one process of the node at a time work on a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".fetching-{name}", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
