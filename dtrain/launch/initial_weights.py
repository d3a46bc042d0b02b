"""Resolves `init_from` when a run is made: a run is fixed to one of its checkpoints, a file to its path."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from dtrain.api.plan import Problem
from dtrain.checkpoint import choice
from dtrain.common.errors import DtrainError
from dtrain.job.job import InitFrom, Job

KEY = "init_from"
FILE_ENDING = re.compile(r".*\.[a-z][a-z0-9]{1,11}")


def resolved(job: Job, runs: Path) -> tuple[Job, list[Problem]]:
    """The job with what it begins with fixed, and what is wrong with that."""
    if job.init_from is None:
        return job, []
    wanted = InitFrom(job.init_from) if isinstance(job.init_from, str) else job.init_from
    if job.kind == "script":
        return job, [
            Problem((KEY,), "a script loads its own weights: init_from is for tasks and functions; give it `args`")
        ]
    try:
        return dataclasses.replace(job, init_from=_fixed(wanted, Path(job.folder), runs)), []
    except DtrainError as error:
        return job, [Problem((KEY,), f"{error.message}. {error.hint}" if error.hint else error.message)]


def _fixed(wanted: InitFrom, folder: Path, runs: Path) -> InitFrom:
    path = folder / Path(wanted.source).expanduser()
    if "://" not in wanted.source and path.exists() and not is_of_run(path):
        if wanted.step is not None or wanted.best is not None:
            raise DtrainError(f"{path} is a file, which has no steps to choose from: leave out step and best")
        return dataclasses.replace(wanted, source=str(path.resolve()))
    if "://" not in wanted.source and not path.exists() and _looks_like_file(wanted.source):
        raise DtrainError(f"there is no file {path}")
    name = wanted.source if "://" in wanted.source or not path.exists() else str(path)
    run, _, step = choice.of_name(runs, name, wanted.step, wanted.best)
    return InitFrom(name if "://" in name else str(run.path), step, strict=wanted.strict)


def is_of_run(path: Path) -> bool:
    """Whether this is a run's folder, or a checkpoint's in one."""
    of_checkpoint = choice.STEP_FOLDER.fullmatch(path.name) and (path.absolute().parent.parent / "job.json").is_file()
    return (path / "job.json").is_file() or bool(of_checkpoint)


def _looks_like_file(source: str) -> bool:
    return "/" in source or bool(FILE_ENDING.fullmatch(source))


def told(job: Job) -> str:
    """Describe the weights that a resolved job begins with; '' for new ones."""
    begins = job.init_from
    if begins is None or isinstance(begins, str):
        return begins or ""
    step = f", step {begins.step}" if begins.step is not None else ""
    return f"{begins.source}{step}" + ("" if begins.strict else " (those that fit: strict is false)")
