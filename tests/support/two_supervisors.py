"""The whole life of a supervisor as storage sees it, done by dtrain's own code, and two of them of which each is held up at any operation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dtrain.checkpoint.remote import GIVEN_UP, RemoteCheckpointStore
from dtrain.checkpoint.store import MANIFEST, CheckpointInfo, CheckpointOrigin, CheckpointShard, CheckpointStore, parsed
from dtrain.common.errors import CheckpointError, DtrainError, StorageError
from dtrain.common.files import hashed
from dtrain.record.event_log import EventLog, read
from dtrain.record.events import AttemptStarted, CheckpointSaved, RunEnded
from dtrain.record.folder import RunDir
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore
from dtrain.storage.run_copy import RunCopy
from dtrain.storage.run_sync import ClaimedCopy

TARGET = 2
"""Steps of the training; every one is saved, one is kept."""
ORIGIN = CheckpointOrigin("ddp", 1, "a-run")
OPERATIONS = 45
"""Operations of one life on the storage, and some more."""


class WatchedFiles:
    """A file system of fsspec that says before each operation that it is about to be done."""

    def __init__(self, files: Any, tick: Callable[[], None]) -> None:
        self._files = files
        self._tick = tick

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._files, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            self._tick()
            return found(*arguments, **named)

        return call


class WatchedStore(ObjectStore):
    """A store with such a file system."""

    def __init__(self, url: str, options: dict[str, Any], tick: Callable[[], None]) -> None:
        super().__init__(url, options)
        self._tick = tick

    @property
    def _files(self) -> Any:
        return WatchedFiles(super()._files, self._tick)


@dataclass
class Life:
    """One supervisor of the run, on a machine of its own."""

    run: RunDir
    store: ObjectStore
    exit_code: int | None = None
    error: Exception | None = None

    def live(self) -> None:
        """From the lock to the end."""
        try:
            with self.run.lock() as lease:
                claim = run_lease.take(self.store, lease)
                if claim is None:
                    return
                there = ClaimedCopy(self.run, self.store, claim)
                there.copy.pull()
                lease = replace(lease, there=there)
                checkpoints = RemoteCheckpointStore(self.run.checkpoints, self.store, lease)
                log = EventLog(self.run.events)
                train(checkpoints, log, self.run)
                lease.check()
                log.add(RunEnded(exit_code=0, reason="finished"))
                log.close()
                there.copy.push()
                there.check()
                self.exit_code = 0
                there.claim.release()
        except (DtrainError, OSError) as error:
            self.error = error


def train(checkpoints: CheckpointStore, log: EventLog, run: RunDir) -> None:
    """Go on from the newest checkpoint to the last step, saving each. Raises as the store does."""
    checkpoints.clear_staging()
    found = [one for one in checkpoints.latest_valid() if isinstance(one, CheckpointInfo)]
    step = found[0].step if found else 0
    known = max((event.attempt for event in read(run.events) if isinstance(event, AttemptStarted)), default=0)
    attempt = checkpoints.new_attempt(known)
    started = AttemptStarted(
        attempt=attempt, step=step, checkpoint=None, memory=False, nodes=(), workers=1, processes=1
    )
    log.add(started)
    while step < TARGET:
        step += 1
        run.ledger(attempt, 0).write_bytes(bytes([attempt]) * step)
        parts = [shard(checkpoints, attempt, step, run)]
        saved = checkpoints.commit(attempt, step, parts, ORIGIN)
        log.add(
            CheckpointSaved(attempt=attempt, step=step, folder=saved.name, bytes=saved.bytes, weights=saved.weights)
        )
        checkpoints.prune(lambda steps: steps[:1])


def shard(checkpoints: CheckpointStore, attempt: int, step: int, run: RunDir) -> CheckpointShard:
    """What the attempt's worker writes; no two write the same."""
    folder = checkpoints.staging(attempt, step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensors").write_bytes(f"{run.path} {attempt} {step}".encode())
    files = {"tensors": hashed(folder / "tensors")}
    checkpoints.publish(attempt, step, files)
    return CheckpointShard(files, "1")


@dataclass
class Paused:
    """Runs something in a thread up to an operation, and then to its end."""

    at: int
    """Operations before the pause."""
    done: int = 0
    paused: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)

    def tick(self) -> None:
        """An operation is about to be done."""
        self.done += 1
        if self.done == self.at:
            self.paused.set()
            assert self.goes_on.wait(60)

    def start(self, what: Callable[[], None]) -> threading.Thread:
        """Return when it is paused, or over."""

        def work() -> None:
            try:
                what()
            finally:
                self.paused.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert self.paused.wait(60)
        return thread


def both(folder: Path, first_at: int, second_at: int) -> tuple[Life, Life]:
    """The first one up to an operation, the second one up to one, then the rest of the first, then of the second."""
    url = f"file://{folder}/there"
    lives, threads, pauses = [], [], [Paused(first_at), Paused(second_at)]
    for number, pause in enumerate(pauses):
        run = RunDir(folder / f"machine-{number}" / "run")
        run.create_folders()
        run.job_file.write_text("{}")
        lives.append(Life(run, WatchedStore(url, {}, pause.tick)))
        threads.append(pause.start(lives[number].live))
    for pause, thread in zip(pauses, threads, strict=True):
        pause.goes_on.set()
        thread.join(60)
        assert not thread.is_alive()
    return lives[0], lives[1]


def is_whole(store: ObjectStore, manifest: str) -> bool:
    """Whether every file of a committed checkpoint is what was written; of one that was given up there is nothing else."""
    text = store.read(manifest) or b""
    found = parsed(text)
    above = manifest.removesuffix(MANIFEST)
    if isinstance(found, str):
        return text == GIVEN_UP
    return all(
        f"{above}{name}" in store.sizes(above) and store.hashed(f"{above}{name}") == entry
        for name, entry in found.files.items()
    )


def problem(folder: Path, lives: tuple[Life, Life]) -> str:
    """What a third machine finds to be wrong; '' if all promises are kept."""
    run, store = RunDir(folder / "third" / "run"), ObjectStore(f"file://{folder}/there", {})
    run.create_folders()
    run.job_file.write_text("{}")
    RunCopy(run, store).pull()
    history = read(run.events)
    attempts = [event.attempt for event in history if isinstance(event, AttemptStarted)]
    ends = sum(isinstance(event, RunEnded) for event in history)
    well = sum(life.exit_code == 0 for life in lives)
    checkpoints = RemoteCheckpointStore(run.checkpoints, store)
    found = list(checkpoints.latest_valid())
    if attempts != sorted(set(attempts)):
        return f"attempts {attempts}"
    if ends < well:
        return f"{well} supervisors ended well, and the log knows of {ends}"
    if any(not isinstance(one, CheckpointInfo) for one in found):
        return f"a damaged checkpoint: {found}"
    if damaged := [
        name for name in store.sizes("checkpoints") if name.endswith(MANIFEST) and not is_whole(store, name)
    ]:
        return f"committed and not whole: {damaged}"
    if well and (not isinstance(found[-1], CheckpointInfo) or found[-1].step != TARGET):
        return f"a run that ended well has {found}"
    for name in (one.name for one in found if isinstance(one, CheckpointInfo)):
        attempt = int(name.rpartition("-")[2])
        if attempt not in attempts or run.ledger(attempt, 0).stat().st_size < TARGET:
            return f"{name} is there without the history that explains it"
    for life in lives:
        if life.error and not isinstance(life.error, DtrainError):
            return f"{type(life.error).__name__}: {life.error}"
        if isinstance(life.error, StorageError) and not isinstance(life.error, CheckpointError):
            return f"an error of storage: {life.error}"
    return ""
