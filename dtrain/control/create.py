"""Making a run of a recipe, and changing the settings of one that is resumed."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from dtrain.api.plan import LaunchPlan
from dtrain.common.errors import Exit, StorageError, UsageError
from dtrain.common.files import PRIVATE_FILE
from dtrain.common.serde import to_dict
from dtrain.control.overrides import Overrides
from dtrain.control.state import refuse_while_it_goes_on, state_of
from dtrain.job import code
from dtrain.job.code import Snapshot
from dtrain.job.job import Job
from dtrain.launch import planner, recipe, sweep, target_recipe, yaml_source
from dtrain.launch.tuning import HISTORY
from dtrain.launch.yaml_source import Document
from dtrain.record import code_snapshot
from dtrain.record.folder import RunDir
from dtrain.record.folder import create as create_folder
from dtrain.record.status import RunState
from dtrain.storage import run_sync

DIFFERENCE_LINES = 20


def new_run(path: Path, runs: Path, given: Overrides) -> RunDir:
    """A new run folder for a recipe; raises `UsageError` for every mistake in it."""
    return made(recipe.load(path, given, runs=runs), path, runs)


def new_run_of(document: Document, folder: Path, runs: Path, given: Overrides) -> RunDir:
    """A new run folder for a recipe that is no file; paths in it begin at `folder`."""
    written = yaml.safe_dump(document.data, sort_keys=False)
    run = create_folder(runs, recipe.from_document(document, folder, given, runs=runs, profiles=True))
    run.recipe_copy.write_text(written)
    run.recipe_copy.chmod(PRIVATE_FILE)
    code_snapshot.take(run.code, run.job(), runs)
    return run


def new_sweep(path: Path, runs: Path, given: Overrides, sweeps: Sequence[str]) -> list[Callable[[], RunDir]]:
    """For each member of a sweep what makes its run; all members are checked before the first is made."""
    return [lambda job=job: made(job, path, runs) for job in _swept(path, runs, given, sweeps, here=True)]  # type: ignore[misc]


def _swept(path: Path, runs: Path, given: Overrides, sweeps: Sequence[str], *, here: bool) -> list[Job]:
    members = sweep.members(sweeps)
    return [sweep.named(recipe.load(path, [*given, *member], here=here, runs=runs), member) for member in members]


def planned(path: Path, runs: Path, given: Overrides, sweeps: Sequence[str] = ()) -> list[LaunchPlan]:
    """Plan what would run, also if this machine cannot start it; of a sweep for each member."""
    return [planner.make(job) for job in _swept(path, runs, given, sweeps, here=False)]


def made(job: Job, path: Path, runs: Path) -> RunDir:
    """The folder of a new run of this job, with a copy of its recipe."""
    run = create_folder(runs, job)
    _keep_recipe(run, path, job)
    if not target_recipe.is_target(path):
        run.recipe_source.write_text(str(path.absolute()))
    code_snapshot.take(run.code, job, runs)
    return run


def _keep_recipe(run: RunDir, path: Path, job: Job) -> None:
    if target_recipe.is_target(path):
        run.recipe_copy.write_text(target_recipe.text_of(path, job))
    else:
        shutil.copyfile(path, run.recipe_copy)
    run.recipe_copy.chmod(PRIVATE_FILE)


def prepare_resume(run: RunDir, given: Overrides, path: Path | None, *, new_code: bool = False) -> str:
    """Give a run the settings that it goes on with and, with `new_code`, the code as it is now; raises `UsageError` if it cannot go on,
    or not with these. Returns for a person what was edited since the run began and whether it applies, or ''."""
    before, job, had = _next_job(run, given, path, new_code=new_code)
    if path:
        _keep_recipe(run, path, job)
    edits = [] if path else [_edits(run)]
    edits.append(_give_code(run, before, job, had, new=new_code or had is None or job.folder != before.folder))
    run.write_job(job)
    return "\n".join(filter(None, edits))


def planned_resume(run: RunDir, given: Overrides, path: Path | None, *, new_code: bool = False) -> LaunchPlan:
    """Plan what a run would go on with; nothing is changed."""
    _, job, had = _next_job(run, given, path, new_code=new_code)
    with code.using(None if new_code else had):
        return planner.make(job)


def _next_job(run: RunDir, given: Overrides, path: Path | None, *, new_code: bool) -> tuple[Job, Job, Snapshot | None]:
    """The job of a run, the one that it goes on with, and the code that it has; raises `UsageError` if it cannot go on with these."""
    if host := run.brought_from:
        raise UsageError(
            f"this is a copy of {run.id} from {host}", f"Go on with it there: dtrain resume {run.id} --host {host}"
        )
    refuse_while_it_goes_on(run)
    before, state = run.job(), state_of(run)
    had = _code(run, before, state, new=new_code)
    with code.using(None if new_code else had):
        job = recipe.load(path, given, runs=run.path.parent) if path else overridden(run, before, given)
    job = replace(job, name=before.name, init_from=before.init_from)
    _refuse_if_finished(run, state, before, job)
    if state.saved_step:
        _refuse_another_history(run, state.saved_step, before, job)
    return before, job, had


def _code(run: RunDir, job: Job, state: RunState, *, new: bool) -> Snapshot | None:
    """The snapshot that a run trained from last, on whatever machine. Raises `StorageError` if it is damaged, unless new code takes its
    place."""
    try:
        found = code_snapshot.opened(run.code, job.folder)
        if state.code != (found.digest if found else "") and (copy := run_sync.of(run, job)):
            copy.pull_code()
            found = code_snapshot.opened(run.code, job.folder)
    except StorageError:
        if not new:
            raise
        return None
    return found


def _give_code(run: RunDir, before: Job, job: Job, had: Snapshot | None, *, new: bool) -> str:
    """Have a run go on with the code as it is now, or as it was. Returns what was edited, for a person."""
    runs = run.path.parent
    edited = [f"  {how} {path}" for how, path in code_snapshot.edited(had, before, runs)] if had else []
    if new:
        if had:
            os.replace(run.code, run.former_code(had.digest))
        code_snapshot.take(run.code, job, runs)
    if not edited:
        return ""
    shown = "\n".join([*edited[:DIFFERENCE_LINES], *(["  …"] if len(edited) > DIFFERENCE_LINES else [])])
    files = "a file" if len(edited) == 1 else f"{len(edited)} files"
    if new:
        return f"the code of {run.id} is taken as it is now; {files} changed since the run began:\n{shown}"
    return (
        f"{files} changed since this run began; the run goes on with the code that it began with.\n{shown}\n"
        f"  take the code as it is now: dtrain resume {run.id} --code new"
    )


def overridden(run: RunDir, before: Job, given: Overrides) -> Job:
    """The job of a run with these settings changed; raises `UsageError` for every mistake."""
    data = to_dict(before)
    where, filled = Path(data.pop("folder")), tuple(data.pop("filled"))
    data.pop("init_from")  # what it was then; the file may be gone
    for kind in ("strategy", "cluster"):
        data[kind] = {"name": data[kind]["name"]} | data[kind]["options"]
    if data["track"] is not None:
        data["track"] = [{"name": tracker["name"]} | tracker["options"] for tracker in data["track"]]
    data["args"] = list(data["args"])
    return replace(recipe.from_document(yaml_source.Document(str(run.job_file), data), where, given), filled=filled)


def _refuse_if_finished(run: RunDir, state: RunState, before: Job, job: Job) -> None:
    if state.exit_code != Exit.DONE:
        return
    if job.kind == "script":
        raise UsageError(
            f"the run {run.id} is finished: its script ended with exit code 0", "To run it again: dtrain run."
        )
    if (job.train.steps, job.train.epochs, job.train.until) == (
        before.train.steps, before.train.epochs, before.train.until
    ):  # fmt: skip
        more = 2 * (state.total_steps or 0) or 1000
        key = f"train.epochs={2 * before.train.epochs:g}" if before.train.epochs else f"train.steps={more}"
        key = "train.until=null" if before.train.until else key
        raise UsageError(
            f"the run {run.id} is finished: it did {state.step} of {state.total_steps} steps",
            f"To train further: dtrain resume {run.id} --set {key}",
        )


def _refuse_another_history(run: RunDir, saved_step: int, before: Job, job: Job) -> None:
    changed = [key for key in HISTORY if getattr(before.train, key) != getattr(job.train, key)]
    if job.kind != "script" and changed:
        key = changed[0]
        raise UsageError(
            f"train.{key} cannot change from {getattr(before.train, key)} to {getattr(job.train, key)}: "
            f"{saved_step} steps of {run.id} are trained, and the order of samples depends on it",
            "Begin a new run with dtrain run, or leave this key as it is.",
        )


def _edits(run: RunDir) -> str:
    """How the recipe file differs from what the run was made of; the run keeps its own settings."""
    try:
        source = Path(run.recipe_source.read_text())
        now, then = source.read_text().splitlines(), run.recipe_copy.read_text().splitlines()
    except (OSError, ValueError):
        return ""
    lines = list(difflib.unified_diff(then, now, "this run", str(source), lineterm="", n=0))[2:]
    if not lines:
        return ""
    shown = "\n".join(f"  {line}" for line in lines[:DIFFERENCE_LINES])
    return (
        f"{source} was edited since this run began; the run goes on with its own settings.\n{shown}\n"
        f"  take the edited one: dtrain resume {run.id} --recipe {source}"
    )
