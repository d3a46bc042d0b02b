"""A run's folder on remote storage: the few things that are done there, through fsspec, with errors in our own words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from dtrain.common import installation
from dtrain.common.errors import StorageError
from dtrain.common.files import PRIVATE_FOLDER, digest
from dtrain.job.job import Storage

CHUNK = 1 << 22
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints below a run's."""
MODIFIED = ("LastModified", "mtime", "last_modified", "updated", "created")
"""Keys under which file systems of fsspec report the time of the last write."""
VERSION = ("size", "ETag", "etag", "generation", "md5Hash", "ino", *MODIFIED)
"""Keys under which they report a version that changes with each write."""
PATIENCE_SECONDS = 20.0
"""Upper bound for one operation, its retries included: libraries wait for many minutes, some for ever (an S3 endpoint that
takes a connection and never answers)."""
SLOWEST = 1 << 20
"""Bytes a second: larger files may take this much longer."""


def url_problem(url: str) -> str:
    """Why nothing can be kept at a URL, as far as that can be said without asking it; '' if nothing is wrong."""
    from fsspec import get_filesystem_class

    protocol, separator, _ = url.partition("://")
    if not separator:
        return f"'{url}' is no URL: for example s3://bucket/runs"
    try:
        get_filesystem_class(protocol)
    except ValueError:
        return f"there is no file system '{protocol}' in fsspec: for example s3://bucket/runs"
    except ImportError as error:
        extra = installation.command("s3") if protocol in ("s3", "s3a") else str(error)
        return f"the package for {protocol}:// is not installed: {extra}"
    return ""


class ObjectStore:
    """A folder of an fsspec file system; all names are relative to it. Every method raises `StorageError`."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url.rstrip("/")
        self._options = options

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        # Somebody else writes there too: what was listed once must not be believed later.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if self.url.startswith("file://"):
            options["auto_mkdir"] = True
        file_system, path = url_to_fs(self.url, **(options | self._options))
        return file_system, str(path)

    def _at(self, name: str) -> str:
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    @property
    def _files(self) -> Any:
        return self._opened[0]

    def _patience(self, size: int = 0) -> dict[str, float]:
        """Argument of every call; only asynchronous file systems, which those of networks are, know it."""
        return {"timeout": PATIENCE_SECONDS + size / SLOWEST} if self._files.async_impl else {}

    def _make_private(self) -> None:
        """Keep a folder of a file system for its owner: a run's job may hold secrets."""
        if self.url.startswith("file://") and not Path(self._at("")).exists():
            Path(self._at("")).parent.mkdir(parents=True, exist_ok=True)
            Path(self._at("")).mkdir(PRIVATE_FOLDER, exist_ok=True)

    def put(self, path: Path, name: str) -> None:
        """Copy a file to the storage."""
        with self._trouble("write", name):
            self._make_private()
            self._files.put_file(str(path), self._at(name), **self._patience(path.stat().st_size))

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a small file."""
        with self._trouble("write", name):
            self._make_private()
            self._files.pipe_file(self._at(name), data, **self._patience())

    def create(self, name: str, data: bytes) -> bool:
        """Make a small file if it is not there; False: it is, with other content. Of several callers at once, each with content of its
        own, one succeeds; on a store without conditional writes (`If-None-Match`), all of them may."""
        with self._trouble("write", name):
            self._make_private()
            try:
                self._files.pipe_file(self._at(name), data, mode="create", **self._patience())
            except FileExistsError:
                return self.read(name) == data  # a library that tries again after a lost answer meets its own file
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                if self._files.exists(self._at(name)):
                    return self.read(name) == data
                self._files.pipe_file(self._at(name), data, **self._patience())
            return True

    def modified(self, name: str) -> float:
        """When a file was written last, in seconds since 1970 of the store's own clock."""
        with self._trouble("read", name):
            info = self._files.info(self._at(name), **self._patience())
            time = next(info[key] for key in MODIFIED if key in info)
            return float(time.timestamp() if hasattr(time, "timestamp") else time)

    def read(self, name: str) -> bytes | None:
        """A small file; None: it is not there."""
        with self._trouble("read", name):
            try:
                data: bytes = self._files.cat_file(self._at(name), **self._patience())
            except FileNotFoundError:
                return None
            return data

    def get(self, name: str, path: Path, size: int) -> None:
        """Copy a file of `size` bytes here, aside first: it is whole or it is not there."""
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with self._trouble("read", name):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(self._at(name), str(aside), **self._patience(size))
            os.replace(aside, path)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name → bytes of every file below a folder."""
        return {name: int(info["size"]) for name, info in self._listed(folder).items()}

    def versions(self, folder: str) -> dict[str, str]:
        """Name → what tells a file from one that was written over it, of every file below a folder."""
        return {name: str([info.get(key) for key in VERSION]) for name, info in self._listed(folder).items()}

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        with self._trouble("list", folder):
            try:
                found = self._files.find(self._at(folder), detail=True, **self._patience())
            except FileNotFoundError:
                return {}
        above = len(self._at("").rstrip("/")) + 1
        return {path[above:]: info for path, info in found.items() if info["type"] == "file"}

    def hashed(self, name: str) -> tuple[int, str]:
        """Size and digest of a file, read once through."""
        result = digest()
        with self._trouble("read", name):
            size = int(self._files.info(self._at(name), **self._patience())["size"])
            for begin in range(0, size, CHUNK):
                end = min(size, begin + CHUNK)
                result.update(self._files.cat_file(self._at(name), start=begin, end=end, **self._patience(end - begin)))
        return size, str(result.hexdigest())

    def delete(self, names: Iterable[str]) -> None:
        """Delete files. Idempotent."""
        for name in names:
            with self._trouble("delete", name), suppress(FileNotFoundError):
                self._files.rm_file(self._at(name), **self._patience())

    @contextmanager
    def _trouble(self, verb: str, name: str) -> Iterator[None]:
        """Whatever a file system's own libraries raise, in one line."""
        try:
            yield
        except Exception as error:
            words = " ".join(str(error).split())
            if not words:
                words = "no answer came in time" if isinstance(error, TimeoutError) else type(error).__name__
            raise StorageError(
                f"cannot {verb} {self.url}/{name}: {words}",
                "Check storage.url and storage.options, the credentials, and whether the endpoint answers.",
            ) from error


def of_run(storage: Storage, run_id: str) -> ObjectStore:
    """The remote folder of a run."""
    return ObjectStore(f"{str(storage.url).rstrip('/')}/{run_id}", storage.options)
