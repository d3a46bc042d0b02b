"""Every path of a run: the folder is the only state that processes share."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dtrain.common.errors import RunNotFound, UsageError
from dtrain.common.files import write_json
from dtrain.common.serde import from_dict, to_dict
from dtrain.run.lock import Lease
from dtrain.spec.job import Job

LOCK_LOOK_SECONDS = 0.2
SILENT_SECONDS = 60.0
"""A supervisor on another machine that has not been heard of for so long is gone."""


@dataclass(frozen=True)
class Submitted:
    """Which cluster a run was given to, when, and what that calls it."""

    cluster: str
    reference: str
    time: float
    """Seconds since 1970, of the submission by a person."""


@dataclass(frozen=True)
class RunDir:
    """One run's folder and what lies where in it."""

    path: Path

    @property
    def id(self) -> str:
        """The run's id: the name of its folder."""
        return self.path.name

    @property
    def job_file(self) -> Path:
        """The frozen job, as planned when the run was made."""
        return self.path / "job.json"

    @property
    def events(self) -> Path:
        """Everything that happened, one JSON line each; only the supervisor writes it."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Logs of workers, agents and a detached supervisor."""
        return self.path / "logs"

    @property
    def ledgers(self) -> Path:
        """What each rank trained on, step by step."""
        return self.path / "ledger"

    @property
    def submission(self) -> Path:
        """Cluster and reference of a submitted run."""
        return self.path / "submission.json"

    @property
    def stop_request(self) -> Path:
        """Its presence asks the supervisor to stop; it says how."""
        return self.path / "stop"

    @property
    def lock_file(self) -> Path:
        """Held by the run's one supervisor, with its host and process id in it."""
        return self.path / "supervisor.lock"

    def rank_log(self, rank: int) -> Path:
        """Output of one worker, over all attempts."""
        return self.logs / f"rank-{rank:05d}.log"

    def ledger(self, attempt: int, rank: int) -> Path:
        """The samples of one worker in one attempt."""
        return self.ledgers / f"attempt-{attempt:04d}-rank-{rank:05d}.bin"

    def create_folders(self) -> None:
        """Idempotent. Make the folders in it."""
        for folder in (self.logs, self.checkpoints, self.ledgers):
            folder.mkdir(parents=True, exist_ok=True)

    def append_only_files(self) -> list[Path]:
        """The workers' and agents' files that only grow."""
        return sorted(itertools.chain(self.logs.glob("*.log"), self.ledgers.glob("*.bin")))

    def job(self) -> Job:
        """The job of this run; raises `RunNotFound` where the folder is no run."""
        try:
            return from_dict(Job, json.loads(self.job_file.read_text()))
        except FileNotFoundError:
            raise RunNotFound(f"{self.path} is not a run folder: it has no {self.job_file.name}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise RunNotFound(
                f"{self.job_file} cannot be read: {error}", "It was damaged or made by another version."
            ) from None

    def write_job(self, job: Job) -> None:
        """Replace the job as a whole."""
        write_json(self.job_file, to_dict(job))

    def forget_old_stop_request(self) -> None:
        """Drop a request that is older than the last start by a person; one made while the run was queued counts."""
        with suppress(FileNotFoundError):
            if self.stop_request.stat().st_mtime < self.job_file.stat().st_mtime:
                self.stop_request.unlink()

    def submitted(self) -> Submitted | None:
        """Where this run was submitted to last, or None for one that never was."""
        try:
            return from_dict(Submitted, json.loads(self.submission.read_text()))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write_submitted(self, submitted: Submitted) -> None:
        """Remember where this run was submitted to."""
        write_json(self.submission, to_dict(submitted))

    @contextmanager
    def lock(self, patience_seconds: float = 0.0) -> Iterator[Lease]:
        """Be the run's only supervisor; raises `UsageError` where another one lives longer than that."""
        deadline = time.monotonic() + patience_seconds
        with open(self.lock_file, "a+") as file:
            while not _locked(file):
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise UsageError(
                        f"the run {self.id} is already supervised by {holder}", f"See it: dtrain status {self.id}"
                    )
                time.sleep(LOCK_LOOK_SECONDS)
            mark = f"process {os.getpid()} on {os.uname().nodename}, {os.urandom(4).hex()}\n"
            file.truncate(0)
            file.write(mark)
            file.flush()
            try:
                yield Lease(self.lock_file, mark)
            finally:
                file.truncate(0)

    @property
    def remote_heartbeat_file(self) -> Path:
        """When a supervisor on another machine last said on remote storage that it lives, in seconds since 1970."""
        return self.path / "elsewhere"

    def supervised(self) -> bool:
        """Whether a supervisor works on the run, here or, as far as is known, on another machine."""
        return self.locked() or self.supervised_elsewhere()

    def supervised_elsewhere(self) -> bool:
        """Whether a supervisor on another machine was heard of lately."""
        try:
            return time.time() - float(self.remote_heartbeat_file.read_text()) < SILENT_SECONDS
        except (OSError, ValueError):
            return False

    def locked(self) -> bool:
        """Whether a supervisor holds the lock (as far as this machine can see)."""
        try:
            with open(self.lock_file) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def create(root: Path, job: Job) -> RunDir:
    """A new run folder with a name of its own, below `root`."""
    while True:
        path = root.absolute() / f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot make a run folder in {root}: {error.strerror}", "Choose another one with --runs."
            ) from None
        break
    run = RunDir(path)
    run.create_folders()
    run.write_job(job)
    return run


def all_runs(root: Path) -> list[RunDir]:
    """The runs below `root`, the one that was started or resumed last at the end."""
    if not root.is_dir():
        return []
    runs = [RunDir(path.absolute()) for path in root.iterdir() if (path / "job.json").is_file()]
    return sorted(runs, key=lambda run: run.job_file.stat().st_mtime)


def find(root: Path, name: str) -> RunDir:
    """The run with this path, id, unambiguous prefix of an id, or `last`; raises `RunNotFound`."""
    if (Path(name) / "job.json").is_file():
        return RunDir(Path(name).absolute())
    runs = all_runs(root)
    if not runs:
        raise RunNotFound(
            f"there are no runs in {root.absolute()}", "Name another folder with --runs, or a run by its path."
        )
    if name == "last":
        return runs[-1]
    matching = [run for run in runs if run.id == name] or [run for run in runs if run.id.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise RunNotFound(
            f"'{name}' begins the ids of {len(matching)} runs: {', '.join(run.id for run in matching)}",
            "Give more of it.",
        )
    recent = ", ".join(run.id for run in runs[-3:])
    raise RunNotFound(f"no run '{name}' in {root.absolute()}", f"The newest are: {recent}.")
