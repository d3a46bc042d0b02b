"""`dtrain rm` and `dtrain clean`: free the disk of runs that have ended, after asking; never of one that goes on."""

from __future__ import annotations

import math
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from dtrain.common.errors import DtrainError, NewerFormat, RunNotFound, UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.control import state as queries
from dtrain.control.state import RunRow
from dtrain.job.job import Job
from dtrain.record.folder import RunDir
from dtrain.record.metric_curves import HELD_OUT, lower_is_better
from dtrain.show.render import counted, size
from dtrain.storage import run_sync


@dataclass(frozen=True)
class Removal:
    """A run that is about to be removed."""

    run: RunDir
    state: str
    bytes: int
    storage: str
    """URL of its copy on remote storage, or ''."""
    loss: str = ""


@dataclass(frozen=True)
class Removed:
    """A run or a study that was removed, or would be."""

    run: str
    """Its id."""
    state: str
    bytes: int
    storage: str
    """URL of its copy on remote storage, or ''."""
    removed: bool
    """Whether it was; without `--yes`, nothing is."""


def refuse_live(run: RunDir) -> None:
    """Raises `UsageError` if a supervisor works on the run, or its cluster is going to start one."""
    if queries.goes_on(run):
        raise UsageError(f"the run {run.id} goes on: nothing was removed", f"End it first: dtrain stop {run.id}")


def planned(run: RunDir) -> Removal:
    """Find what would be removed of a run."""
    row = queries.row(run)
    url = str(job.storage.url or "") if (job := _job(run)) and not run.brought_from else ""
    return Removal(run, row.state, folder_bytes(run.path), f"{url.rstrip('/')}/{run.id}" if url else "")


def _job(run: RunDir) -> Job | None:
    """The job of a run; None if it is gone, damaged or of a newer version: then nobody knows of a copy on remote storage."""
    try:
        return run.job()
    except (RunNotFound, NewerFormat):
        return None


def folder_bytes(path: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    found = 0
    for file in path.rglob("*"):
        try:
            found += file.lstat().st_blocks * 512
        except OSError:
            continue
    return found


def agreed(removals: Sequence[Removal], *, yes: bool, what: str) -> bool:
    """Show what is to be removed and ask; without a terminal, only `--yes` is an answer."""
    for one in removals:
        there = f", and {one.storage}" if one.storage else ""
        print(f"  {one.run.id}  {one.state}  {size(one.bytes)}{there}")
    total = size(sum(one.bytes for one in removals))
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            f"{what} of {counted(len(removals), 'run')} ({total}) would be removed",
            "To do it without a question: --yes",
        )
    try:
        answer = input(f"Remove {what} of {counted(len(removals), 'run')} ({total})? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def forget_checkpoints(run: RunDir) -> None:
    """Free the disk, here and on remote storage, that the checkpoints of a short run take; its events and logs stay. What cannot be
    removed stays, too."""
    with suppress(DtrainError, OSError):
        remove(planned(run), checkpoints_only=True)


def remove(removal: Removal, *, checkpoints_only: bool = False) -> None:
    """Remove a run, with its copy on remote storage if its job can be read, while nobody can begin to supervise it."""
    run, job = removal.run, _job(removal.run)
    with run.lock() as lease:
        refuse_supervised_elsewhere(run)
        if job and removal.storage and (there := run_sync.claimed(run, job, lease)):
            there.remove("checkpoints" if checkpoints_only else "")
        for path in run.checkpoints.iterdir() if checkpoints_only and run.checkpoints.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not checkpoints_only:
            shutil.rmtree(run.path.resolve())
            if run.path.is_symlink():
                run.path.unlink()


def refuse_supervised_elsewhere(run: RunDir) -> None:
    """Raises `UsageError` for a run with a supervisor on another machine."""
    if run.supervised_elsewhere():
        raise UsageError(f"the run {run.id} is supervised on another machine: it was not removed")


def value_of(row: RunRow, metric: str | None) -> tuple[str, float] | None:
    """(name, value) by which a run is ranked: this metric, else its held-out accuracy or loss, else its loss."""
    wanted = (
        (metric, f"{HELD_OUT}{metric}") if metric else (f"{HELD_OUT}accuracy", f"{HELD_OUT}loss", "accuracy", "loss")
    )
    for name in wanted:
        value = row.metrics.get(name or "")
        if value is not None and math.isfinite(value):
            return str(name), value
    return None


def worse_than_best(runs: Sequence[RunDir], keep: int, metric: str | None) -> Iterator[RunDir]:
    """The ended runs that are not among the `keep` best of those that run the same task; one without a number is the worst."""
    groups: dict[str, list[tuple[float, RunDir]]] = defaultdict(list)
    for run in runs:
        row = queries.row(run)
        if row.state == "unreadable" or queries.goes_on(run):
            continue
        ranked = value_of(row, metric)
        worst = math.inf
        if ranked:
            worst = ranked[1] if lower_is_better(ranked[0]) else -ranked[1]
        groups[job.target if (job := _job(run)) else ""].append((worst, run))
    for members in groups.values():
        yield from (run for _, run in sorted(members, key=lambda member: member[0])[keep:])
