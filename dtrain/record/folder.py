"""Every path in a run folder, which is the only state that the processes of a run share."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from dtrain.common import environment
from dtrain.common.errors import RunNotFound, UsageError, require_format
from dtrain.common.files import PRIVATE_FILE, PRIVATE_FOLDER, flush_folder, folder_clock, write_json
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject, checked, from_dict, to_dict
from dtrain.job.job import Job
from dtrain.record.lock import CLAIMS, SILENT_SECONDS, Lease, is_locked, locked
from dtrain.record.mailbox import Mailbox

FORMAT = 2
"""Format number of job.json; 1, or none: dtrain 0.1.0."""
SIGNS = ("job.json", "events.jsonl")
"""Files of which a run folder has one at least."""


def _rename_old_keys(job: JsonObject) -> None:
    """Put what is in a job of format 1 by a name of before under its name of today."""
    train = job["train"]
    if "terminate_on_nan" in train:
        train["on_nonfinite"] = "stop" if train.pop("terminate_on_nan") else "ignore"


@dataclass(frozen=True)
class Submitted:
    """The cluster that a run was submitted to, the time, and the cluster's reference."""

    cluster: str
    reference: str
    time: float
    """Seconds since 1970, of the submission by a person."""
    position: int = 0
    """Length of the event log then, in bytes."""


@dataclass(frozen=True)
class RunDir:
    """A run folder and the paths in it."""

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
    def recipe_copy(self) -> Path:
        """The recipe file that the run was made of."""
        return self.path / "recipe.yaml"

    @property
    def recipe_source(self) -> Path:
        """Holds the path of that recipe file."""
        return self.path / "recipe.path"

    @property
    def code(self) -> Path:
        """The user's code that the run trains from; see `dtrain.record.code_snapshot`."""
        return self.path / "code.zip"

    @property
    def changes(self) -> Path:
        """What was changed in that code since its commit, as git shows it; empty if nothing was."""
        return self.code.with_suffix(".diff")

    def former_code(self, digest: str) -> Path:
        """The code that the run trained from before it was given another; `digest` identifies it."""
        return self.path / f"code-{digest}.zip"

    @property
    def events(self) -> Path:
        """Everything that happened, one JSON line each; only the supervisor writes it."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def memory(self) -> Path:
        """Views of in-memory checkpoints, a folder for each node, while the run goes on."""
        return self.path / "memory"

    @property
    def logs(self) -> Path:
        """Logs of workers, agents and a detached supervisor."""
        return self.path / "logs"

    @property
    def ledgers(self) -> Path:
        """Folder of the ledgers: the samples that each rank trained on, step by step."""
        return self.path / "ledger"

    @property
    def submission(self) -> Path:
        """Cluster and reference of a submitted run."""
        return self.path / "submission.json"

    @property
    def brought(self) -> Path:
        """In a copy of a run that `dtrain pull` made: the name of the machine that it is a copy from."""
        return self.path / "brought.from"

    @property
    def brought_from(self) -> str:
        """The machine that this is a copy from; '' for a run itself."""
        return self.brought.read_text() if self.brought.exists() else ""

    @property
    def mailbox(self) -> Mailbox:
        """Requests to the run's supervisor."""
        return Mailbox(self.path / "requests")

    @property
    def inspections(self) -> Path:
        """The stacks of workers that somebody asked for, one JSON line each."""
        return self.logs / "stacks.log"

    def profile(self, step: int, rank: int) -> Path:
        """The profile of a rank from a step on: a file, or what its name begins with."""
        return self.profiles / f"step-{step:08d}" / f"rank-{rank:05d}"

    @property
    def profiles(self) -> Path:
        """Profiles that somebody asked for, a folder for each first step."""
        return self.path / "profiles"

    def debug_session(self, request: str) -> Path:
        """Folder of a session of `dtrain debug`; see `dtrain.record.debug_session`."""
        return self.path / "debug" / request

    @property
    def usage(self) -> Path:
        """File with the resource usage of the workers at the last request."""
        return self.path / "usage.json"

    @property
    def lock_file(self) -> Path:
        """Held by the run's one supervisor."""
        return self.path / "supervisor.lock"

    @property
    def claims(self) -> Path:
        """The claims of the run's supervisors, with host and process id; see `dtrain.record.lock`."""
        return self.path / CLAIMS

    def rank_log(self, rank: int) -> Path:
        """Output of one worker, over all attempts."""
        return self.logs / f"rank-{rank:05d}.log"

    def rank_logs(self) -> dict[int, Path]:
        """The log of each rank that has one."""
        return {int(path.stem.split("-")[1]): path for path in sorted(self.logs.glob("rank-*.log"))}

    def error_file(self, rank: int) -> Path:
        """Where a program that is no Python script of ours leaves its error (TORCHELASTIC_ERROR_FILE)."""
        return self.logs / f"rank-{rank:05d}.error.json"

    def operations(self, attempt: int, rank: int) -> Path:
        """The operations that one worker did in some steps of an attempt, if a drill asked for them."""
        return self.logs / f"operations-{attempt:04d}-{rank:05d}.log"

    def ledger(self, attempt: int, rank: int) -> Path:
        """The samples of one worker in one attempt."""
        return self.ledgers / f"attempt-{attempt:04d}-rank-{rank:05d}.bin"

    def create_folders(self) -> None:
        """Idempotent. Make the folders in it."""
        for folder in (self.path, self.logs, self.checkpoints, self.ledgers):
            folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)

    def gradient_ledger(self, attempt: int, rank: int) -> Path:
        """Checksums of a rank's gradients in an attempt."""
        return self.ledgers / f"gradients-attempt-{attempt:04d}-rank-{rank:05d}.bin"

    @property
    def arithmetic(self) -> Path:
        """Fingerprint of the arithmetic that a run with `train.exact` began on."""
        return self.path / "arithmetic"

    def log_bytes(self) -> int:
        """Length of the event log: a position in it, which says what came before and after."""
        try:
            return self.events.stat().st_size
        except FileNotFoundError:
            return 0

    def append_only_files(self) -> list[Path]:
        """The workers' and agents' files that only grow."""
        return sorted(itertools.chain(self.logs.glob("*.log"), self.ledgers.glob("*.bin")))

    def job(self) -> Job:
        """The job of this run; raises `RunNotFound` if the folder is no run, `NewerFormat` if a newer version of dtrain wrote it."""
        try:
            written = json.loads(self.job_file.read_text())
            require_format(str(self.job_file), written.pop("format", 1), FORMAT)
            _rename_old_keys(written)
            return checked(from_dict(Job, written))
        except FileNotFoundError:
            raise RunNotFound(f"{self.path} is not a run folder: it has no {self.job_file.name}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunNotFound(
                f"{self.job_file} cannot be read: {error}", "It was damaged or made by another version."
            ) from None

    @property
    def started(self) -> float:
        """When a person started or resumed the run last, in seconds since 1970 by the clock of the folder's file system."""
        return next(((self.path / name).stat().st_mtime for name in SIGNS if (self.path / name).is_file()), 0.0)

    def is_younger_than(self, seconds: float) -> bool:
        """Whether a person started or resumed the run so lately, as far as this machine can see: no clock can be read in a folder that
        cannot be written to."""
        try:
            return folder_clock(self.path) - self.started < seconds
        except OSError:
            return False

    def write_job(self, job: Job) -> None:
        """Replace the job as a whole; it may hold secrets, so that only its owner may read it."""
        write_json(self.job_file, {"format": FORMAT} | to_dict(job), PRIVATE_FILE)

    def forget_old_requests(self) -> None:
        """Drop requests that are older than the last start by a person; one made while the run was queued counts."""
        with suppress(FileNotFoundError):
            self.mailbox.forget_before(self.job_file.stat().st_mtime)

    def submitted(self) -> Submitted | None:
        """Where this run was submitted to last, or None for one that never was."""
        try:
            return from_dict(Submitted, json.loads(self.submission.read_text()))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write_submitted(self, submitted: Submitted) -> None:
        """Remember where this run was submitted to."""
        write_json(self.submission, to_dict(submitted))

    def detach_log(self) -> None:
        """Put a copy in the place of the event log: a supervisor that was held up, and has the old file open, adds no more to it."""
        aside = self.events.with_name(f".{self.events.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            shutil.copyfile(self.events, aside)
            os.replace(aside, self.events)

    def lock(self, patience_seconds: float = 0.0) -> AbstractContextManager[Lease]:
        """Be the run's only supervisor; see `dtrain.record.lock.locked`."""
        return locked(self.lock_file, self.id, patience_seconds)

    @property
    def remote_heartbeat_file(self) -> Path:
        """When a supervisor on another machine last said on remote storage that it lives, by the clock of this folder's file system."""
        return self.path / "elsewhere"

    @property
    def remote_claim_file(self) -> Path:
        """The number of the newest supervisor whose writes on remote storage were brought into this folder."""
        return self.path / ".claim"

    def supervised(self) -> bool:
        """Whether a supervisor works on the run, here or, as far as is known, on another machine."""
        return self.locked() or self.supervised_elsewhere()

    def supervised_elsewhere(self) -> bool:
        """Whether a supervisor on another machine was heard of lately."""
        try:
            heard = float(self.remote_heartbeat_file.read_text())
            return folder_clock(self.path) - heard < SILENT_SECONDS
        except (OSError, ValueError):
            return False

    def locked(self) -> bool:
        """Whether a supervisor holds the lock (as far as this machine can see)."""
        return is_locked(self.lock_file)


def default_root(runs: str | os.PathLike[str] | None = None) -> Path:
    """The folder of run folders if nobody names one."""
    return Path(runs or os.environ.get(environment.RUNS) or "runs")


def new_id(name: str) -> str:
    """An id that no other run has."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def create(root: Path, job: Job, run_id: str = "") -> RunDir:
    """A new run folder below `root`, with this id or one of its own."""
    while True:
        path = root.absolute() / (run_id or new_id(job.name))
        try:
            root.mkdir(parents=True, exist_ok=True)
            path.mkdir(PRIVATE_FOLDER)
        except FileExistsError:
            if run_id:
                raise UsageError(f"there is a run {run_id} in {root} already", "Choose another folder.") from None
            continue
        except OSError as error:
            raise UsageError(
                f"cannot make a run folder in {root}: {error.strerror}", "Choose another one with --runs."
            ) from None
        break
    run = RunDir(path)
    try:
        run.create_folders()
        run.write_job(job)
        flush_folder(root)
        with suppress(PermissionError):
            flush_folder(root.absolute().parent)  # which may have got `root` only now
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise UsageError(f"cannot write to {root}: {error.strerror}", "Choose another folder with --runs.") from None
    return run


def all_runs(root: Path) -> list[RunDir]:
    """The runs below `root`, the one that was started or resumed last at the end."""
    if not root.is_dir():
        return []
    runs = [RunDir(path.absolute()) for path in root.iterdir() if is_run(path)]
    return sorted(runs, key=lambda run: run.started)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, also if its job is gone."""
    return any((path / name).is_file() for name in SIGNS)


def find(root: Path, name: str) -> RunDir:
    """The run with this path, id, unambiguous prefix of an id, or `last`; raises `RunNotFound`."""
    if is_run(Path(name)):
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
    raise RunNotFound(f"no run '{name}' in {root.absolute()}", _nearest(name, [run.id for run in runs]))


def _nearest(name: str, ids: list[str]) -> str:
    """The run that was perhaps meant: ids end with a date, which a person leaves out."""
    import difflib

    known = {run_id.rsplit("-", 3)[0]: run_id for run_id in ids} | {run_id: run_id for run_id in ids}
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{known[close[0]]}'?" if close else f"The newest are: {', '.join(ids[-3:])}."
