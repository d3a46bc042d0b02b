"""The copy of a run's event log, logs and ledgers on remote storage: the supervisor keeps it up to date, everyone else reads it.

Files that only grow are kept as objects of at most PART_BYTES, named by their offset and the number of the supervisor's claim. What a
supervisor wrote counts up to the offset at which a later one began, so one that was held up changes nothing that counts.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dtrain.common.errors import StorageError
from dtrain.common.files import PRIVATE_FILE, folder_clock, read_at, write_whole
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record import log_retention
from dtrain.record.folder import RunDir
from dtrain.record.lock import last_mark
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore

PART_BYTES = 1 << 18
MOST_WRITES = 60
"""Logs and ledgers written in one round at most, whatever the number of ranks. Those of many ranks take turns."""
WRITERS = 8
"""Ledgers that are copied at a time before a commit."""
COPIED = re.compile(
    r"events\.jsonl|logs/[A-Za-z0-9_-][A-Za-z0-9._-]*\.log|ledger/(gradients-)?attempt-\d+-rank-\d+\.bin"
)
"""Files of a run that are kept there: whoever can write to a bucket must not choose other files here."""
PART = re.compile(r"(?P<file>.+)/(?P<begin>\d+)(-(?P<claim>\d+))?")
"""Older versions named them without the claim."""
JOB = "job.json"
CODE = "code.zip"
STOP = "stop"
INSPECT = "inspect"


@dataclass(frozen=True)
class Part:
    """The bytes of a file that an object holds."""

    name: str
    """Of the object."""
    begin: int
    end: int
    claim: int
    """Of the supervisor that wrote it."""


def parts_that_count(parts: Iterable[Part]) -> list[Part]:
    """Pure. Of the parts of one file, the bytes that are not replaced by those of a later supervisor, in their order."""
    by_claim: dict[int, list[Part]] = defaultdict(list)
    for part in parts:
        by_claim[part.claim].append(part)
    found: list[Part] = []
    limit: int | None = None
    for claim in sorted(by_claim, reverse=True):
        own = [part if limit is None else replace(part, end=min(part.end, limit)) for part in by_claim[claim]]
        found += [part for part in own if part.begin < part.end]
        first = min(part.begin for part in by_claim[claim])
        limit = first if limit is None else min(limit, first)
    return sorted(found, key=lambda part: part.begin)


class RunCopy:
    """One run and its copy; `claim` is the number of the supervisor's claim, which alone may `push`."""

    def __init__(self, run: RunDir, there: ObjectStore, claim: int = 0) -> None:
        self._run = run
        self._store = there
        self._claim = claim
        self._parts: dict[str, dict[str, Part]] | None = None
        """File → its objects there."""
        self._begins: dict[str, int] = {}
        """File → where this supervisor's part of it begins: at the end of what was there when it pulled."""
        self._copied: dict[str, int] = {}
        self._last_pushed = ""
        self._pushing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def push(self, most_writes: int | None = None) -> None:
        """Copy what has grown since the last time: the event log, then the other files in turn, one part of each, until all
        is there or this number of objects is written. Raises `StorageError`; the next call goes on where this one ended."""
        self._push_whole(self._run.events)
        files = self._run.append_only_files()
        first = next((number for number, path in enumerate(files) if str(path) > self._last_pushed), 0)
        waiting = deque(files[first:] + files[:first])
        writes = 0
        while waiting and (most_writes is None or writes < most_writes):
            path = waiting.popleft()
            if self._push_part(path):
                writes += 1
                self._last_pushed = str(path)
                waiting.append(path)

    def push_history(self) -> None:
        """Copy the event log and the ledgers, which explain a checkpoint; may be called beside `push`. Raises `StorageError`."""
        self._push_whole(self._run.events)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self._push_whole, self._run.ledgers.glob("*.bin")))

    def _push_whole(self, path: Path) -> None:
        while path.exists() and self._push_part(path):
            pass

    def _push_part(self, path: Path) -> bool:
        """Copy the next part of a file; False: all of it is there."""
        assert self._claim, "only a supervisor writes"
        name = str(path.relative_to(self._run.path))
        with self._pushing[name]:
            known = self._known_parts().setdefault(name, {})
            first = self._begins.setdefault(name, _length(known.values()))
            done, size = self._copied.get(name, first), path.stat().st_size
            if done >= size:
                return False
            if path.parent == self._run.logs and size > log_retention.HEAD_BYTES:
                done = max(done, self._forget(known, path))
            begin = max(done // PART_BYTES * PART_BYTES, first)
            data = read_at(path, begin, PART_BYTES - begin % PART_BYTES)
            part = Part(f"{name}/{begin:012d}-{self._claim:08d}", begin, begin + len(data), self._claim)
            self._store.write(part.name, data)
            known[part.name] = part
            self._copied[name] = part.end
            return True

    def _known_parts(self) -> dict[str, dict[str, Part]]:
        with self._pushing[""]:
            if self._parts is None:
                self._parts = _by_name(self._listed())
            return self._parts

    def _forget(self, known: dict[str, Part], path: Path) -> int:
        """Delete the parts of a log whose middle was removed here; where its newer part begins."""
        removed = log_retention.hole(path)
        whole = [part for part in known.values() if removed.start <= part.begin and part.end <= removed.stop][
            :MOST_WRITES
        ]
        self._store.delete(part.name for part in whole)
        for part in whole:
            del known[part.name]
        return removed.stop

    def pull(self) -> None:
        """Bring the run folder up to what is there."""
        self._run.create_folders()
        files = self._listed()
        self._parts = _by_name(files)
        self._drop_replaced(files)
        for name, parts in files.items():
            self._fetch(self._run.path / name, parts)
        claims = [part.claim for parts in files.values() for part in parts]
        self._run.remote_claim_file.write_text(str(max([self._claim, self._seen_claim(), *claims])))
        supervisor = run_lease.claimed(self._store)
        if supervisor and supervisor.mark != last_mark(self._run.claims):
            self._run.remote_heartbeat_file.write_text(str(folder_clock(self._run.path) - self._claim_age()))
        else:
            self._run.remote_heartbeat_file.unlink(missing_ok=True)
        if not self._run.job_file.exists():
            job = self._store.read(JOB)
            if job is not None:
                self.pull_code()
                write_whole(self._run.job_file, job, PRIVATE_FILE)

    def pull_code(self) -> None:
        """Bring the snapshot of the run's code here, if it is there."""
        if (code := self._store.read(CODE)) is not None:
            write_whole(self._run.code, code, PRIVATE_FILE)

    def _drop_replaced(self, files: dict[str, list[Part]]) -> None:
        """Cut off what this folder has of a supervisor that wrote on after its successor had begun."""
        seen = self._seen_claim()
        for name, parts in files.items():
            begins = [part.begin for part in parts if part.claim > seen]
            with suppress(FileNotFoundError):
                if begins and (self._run.path / name).stat().st_size > min(begins):
                    os.truncate(self._run.path / name, min(begins))

    def _seen_claim(self) -> int:
        """The newest supervisor whose writes are in this folder."""
        try:
            return int(self._run.remote_claim_file.read_text())
        except (OSError, ValueError):
            return 0

    def _fetch(self, path: Path, parts: list[Part]) -> None:
        have = path.stat().st_size if path.exists() else 0
        for part in parts:
            if part.end > have:
                data = (self._store.read(part.name) or b"")[: part.end - part.begin]
                with open(path, "r+b" if path.exists() else "wb") as file:
                    file.seek(part.begin)
                    file.write(data)

    def _claim_age(self) -> float:
        """Seconds, by the store's clock; by this machine's for somebody who may only read there."""
        try:
            return run_lease.age_seconds(self._store)
        except StorageError:
            return time.time() - run_lease.renewed(self._store)

    def exists(self) -> bool:
        """Whether there is a run there; raises `StorageError`."""
        return self._store.read(JOB) is not None

    def is_complete(self) -> bool:
        """Whether all of the run folder's logs and ledgers are there."""
        there = {name: _length(parts) for name, parts in self._listed().items()}
        here = [path for path in (self._run.events, *self._run.append_only_files()) if path.exists()]
        return all(there.get(str(path.relative_to(self._run.path)), 0) >= path.stat().st_size for path in here)

    def announce(self) -> None:
        """A person has started the run: its code and job, and no request to stop from before."""
        if self._run.code.exists():
            self._store.write(CODE, self._run.code.read_bytes())
        self._store.write(JOB, self._run.job_file.read_bytes())
        self._store.delete([STOP] if self._store.read(STOP) is not None else [])

    def ask_to_stop(self, how: str) -> None:
        """Leave a stop request for the supervisor."""
        self._store.write(STOP, how.encode())

    def ask_to_inspect(self, request: str) -> None:
        """Leave a request to look into the workers for the supervisor."""
        self._store.write(INSPECT, request.encode())

    def take_request(self, name: str) -> str | None:
        """Take a request that was made elsewhere, once."""
        text = self._store.read(name)
        if text is None:
            return None
        self._store.delete([name])
        return text.decode()

    def _listed(self) -> dict[str, list[Part]]:
        """The parts that count of every growing file there."""
        found: dict[str, list[Part]] = defaultdict(list)
        for name, size in self._store.sizes().items():
            part = PART.fullmatch(name)
            if part and COPIED.fullmatch(part["file"]):
                begin = int(part["begin"])
                found[part["file"]].append(Part(name, begin, begin + size, int(part["claim"] or 0)))
        return {name: parts_that_count(parts) for name, parts in found.items()}


def _length(parts: Iterable[Part]) -> int:
    return max((part.end for part in parts), default=0)


def _by_name(files: dict[str, list[Part]]) -> dict[str, dict[str, Part]]:
    return {file: {part.name: part for part in parts} for file, parts in files.items()}
