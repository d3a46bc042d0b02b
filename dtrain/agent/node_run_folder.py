"""Node-local run folder for nodes without the shared file system; the agent streams appended bytes to the supervisor.

One folder a machine and run, taken over by the next agent there when one was killed, with what it had not sent yet
and with its copies of checkpoints.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from dtrain.api.protocol import FileAppended
from dtrain.common import environment
from dtrain.common.errors import ClusterError
from dtrain.common.files import PRIVATE_FILE, read_at, users_folder, write_whole
from dtrain.common.serde import JsonObject, from_dict
from dtrain.job.job import Job
from dtrain.record.folder import RunDir

SENT = "sent.json"
CHUNK = 1 << 18


class NodeRunFolder:
    """A run folder on this node alone, and how much of each of its files was sent."""

    def __init__(self, run: RunDir, lock: IO[str]) -> None:
        self.run = run
        self._lock = lock
        self._sent: dict[str, int] = {}
        with suppress(FileNotFoundError, ValueError):  # a power cut can leave it empty
            self._sent = json.loads((run.path / SENT).read_text())

    def adopt(self, job: JsonObject, code: bytes) -> None:
        """Take the job that the supervisor sent, and its code; its folder is where it was brought to here."""
        if code:
            write_whole(self.run.code, code, PRIVATE_FILE)
        known = from_dict(Job, job)
        self.run.write_job(replace(known, folder=os.environ.get(environment.FOLDER, known.folder)))

    def grown(self) -> Iterator[FileAppended]:
        """The bytes appended to logs and ledgers since the last call; they count as sent when the next ones are asked for."""
        for path in self.run.append_only_files():
            name = str(path.relative_to(self.run.path))
            while chunk := read_at(path, self._sent.get(name, 0), CHUNK):
                offset = self._sent.get(name, 0)
                yield FileAppended(name, offset, base64.b64encode(chunk).decode())
                self._sent[name] = offset + len(chunk)
                self._note()

    def written(self, name: str) -> Iterator[FileAppended]:
        """Files that were written whole: the one of this name, relative to the run folder, and those whose names begin so."""
        first = self.run.path / name
        for path in sorted(first.parent.glob(f"{first.name}*")):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                offset = 0
                while file.is_file() and (chunk := read_at(file, offset, CHUNK)):
                    data = base64.b64encode(chunk).decode()
                    yield FileAppended(str(file.relative_to(self.run.path)), offset, data)
                    offset += len(chunk)

    def _note(self) -> None:
        """Not flushed to disk: what a power cut takes of this folder is not sent by anybody any more."""
        aside = self.run.path / f".{SENT}"
        aside.write_text(json.dumps(self._sent))
        os.replace(aside, self.run.path / SENT)

    def remove(self) -> None:
        """Everything was sent: leave nothing behind."""
        shutil.rmtree(self.run.path, ignore_errors=True)
        self._lock.close()


def take(run_id: str) -> NodeRunFolder:
    """The first folder for this run on this machine that no living agent has; a dead one's is taken over."""
    for number in itertools.count():
        run = RunDir(_private_root() / str(number) / run_id)
        run.create_folders()
        lock = open(run.path / "agent.lock", "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return NodeRunFolder(run, lock)
    raise AssertionError("unreachable")


def _private_root() -> Path:
    """A folder on this node that no other user can have prepared; raises `ClusterError` for one that somebody did.

    Not in XDG_RUNTIME_DIR, which is a small part of the memory: copies of checkpoints are kept here."""
    base = tempfile.gettempdir()
    try:
        return users_folder(base)
    except OSError as error:
        raise ClusterError(
            f"cannot use {error.filename or base} on {socket.gethostname()}: {error.strerror}",
            "Remove it, or set TMPDIR to a folder of your own.",
        ) from error
