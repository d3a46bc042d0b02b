"""Studies from outside: make, start, wait for, stop, resume and remove them; what `dtrain tune` and `dtrain.tune` do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dtrain.api.plan import supervisor_command
from dtrain.common.errors import ClusterError, Exit, UsageError
from dtrain.common.files import PRIVATE_FILE, PRIVATE_FOLDER, write_whole
from dtrain.common.processes import start_detached
from dtrain.control import remove as removing
from dtrain.control import stop as stopping
from dtrain.control.state import goes_on
from dtrain.launch import recipe, tuning, yaml_source
from dtrain.launch.recipe import Override
from dtrain.launch.sweep import members
from dtrain.launch.yaml_source import Document
from dtrain.record import code_snapshot, mailbox
from dtrain.record.folder import RunDir, new_id
from dtrain.record.lock import is_locked
from dtrain.study import packing, plain_journal, trial_run
from dtrain.study.checks import check_values
from dtrain.study.folder import StudyDir, write_end, write_facts
from dtrain.study.journal import Trial, check_sampler, rank

POLL_SECONDS = 0.1
START_SECONDS = 30.0
LOOK_SECONDS = 2.0
STOP_SECONDS = 90.0
ASK_SECONDS = 1.0
"""Between two looks at a study that is in a cluster, whose time is everyone's."""
LIMITS = ("trials", "budget", "samples", "device_hours", "at_once")
"""Keys of the section `tune` that can change when a study goes on."""


def over(text: str, option: str = "--over") -> Override:
    """`KEY=VALUES` of a command line, with values as in a recipe, or `a,b,c`; raises `UsageError`."""
    key, sign, value = text.partition("=")
    if not sign or not all(key.split(".")) or not value:
        raise UsageError(
            f"{option} {text}: not of the form section.key=values", f"For example: {option} 'params.lr=log(1e-5,1e-1)'"
        )
    read = yaml_source.scalar(value, key)
    if isinstance(read, str) and "(" not in read and "," in read:
        read = yaml_source.scalar(f"[{value}]", key)
    return ("tune", "over", key.strip()), read, f"{option} {text}"


def make(document: Document, folder: Path, runs: Path, given: Sequence[Override], source: str = "") -> StudyDir:
    """A new study of a recipe; raises `UsageError` for every mistake in it."""
    job = recipe.from_document(document, folder, given, runs=runs, profiles=True)
    if job.tune is None or not job.tune.over:
        raise UsageError(
            "there is nothing to try", "Say it: --over 'params.lr=log(1e-5,1e-1)', or as tune.over in the recipe."
        )
    check_values(document, folder, runs, job.tune.over)
    if plain_journal.needs_optuna(job.tune):
        check_sampler(job.tune.sampler)
    packing.check(job)
    study = StudyDir(runs.absolute() / new_id(job.name))
    try:
        study.log.parent.mkdir(PRIVATE_FOLDER, parents=True)
        study.path.chmod(PRIVATE_FOLDER)
        write_whole(study.recipe, yaml.safe_dump(document.data, sort_keys=False), PRIVATE_FILE)
        code_snapshot.take(study.code, job, runs)
        write_facts(study, folder, source)
    except OSError as error:
        raise UsageError(f"cannot write to {runs}: {error.strerror}", "Choose another folder with --runs.") from None
    return study


def sweep(path: Path, runs: Path, given: Sequence[Override], sweeps: Sequence[str], at_most: int) -> StudyDir:
    """The study of a sweep: a trial for every combination of its values, `at_most` at once; nothing is compared."""
    document, folder = recipe.read(path, given)
    if not sweeps:
        raise UsageError("--at-most is about the runs of a sweep", "Name them: --sweep train.seed=0,1,2")
    values: dict[str, list[Any]] = {}
    for member in members(sweeps):
        for where, value, _ in member:
            known = values.setdefault(".".join(where), [])
            known += [value] if value not in known else []
    document.data.pop("tune", None)
    section = {"over": values, "sampler": tuning.GRID, "at_once": at_most}
    return make(
        document, folder, runs, [*given, *((("tune", key), value, "--sweep") for key, value in section.items())]
    )


def begin(study: StudyDir) -> None:
    """Start the process of a study, in a session of its own, and wait until it has the study or has ended; one whose trials share an
    allocation is handed in with it."""
    refuse_live(study)
    study.end_file.unlink(missing_ok=True)
    if study.tune.packing:
        packing.submit(study)
        return
    process = start_detached(supervisor_command(RunDir(study.path)), study.log)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and not study.goes_on() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def refuse_live(study: StudyDir) -> None:
    """Raise `UsageError` if a process works on the study."""
    if study.goes_on():
        raise UsageError(f"the study {study.id} goes on", f"Watch it: dtrain attach {study.id}")


def trials(study: StudyDir) -> list[Trial]:
    """The trials so far, by their numbers."""
    if not study.journal.exists() or not study.journal.stat().st_size:
        return []
    try:
        return plain_journal.opened(study.journal, study.id, study.tune).trials()
    except KeyError:  # it is being made
        return []


def mode(study: StudyDir) -> str:
    """Whether less or more is better."""
    measure = tuning.measure(study.tune)
    return measure.mode if measure else "min"


def best(study: StudyDir) -> Trial:
    """The best trial so far; raises `UsageError` if no trial has a value."""
    ranked = rank(trials(study), mode(study))
    if not ranked or ranked[0].value is None or ranked[0].state == "failed" or not study.tune.metric:
        raise UsageError(f"no trial of {study.id} has a value yet", f"See it: dtrain status {study.id}")
    return ranked[0]


def best_recipe(study: StudyDir) -> Path:
    """Write the recipe of the best trial beside the study's recipe, as `NAME-best.yaml`; returns the file."""
    chosen = best(study)
    document = trial_run.document_with(study, chosen.values)
    path = Path(str(study.facts["folder"])) / f"{document.data['name']}-best.yaml"
    note = (
        f"# Trial {chosen.number} of the study {study.id}: {study.tune.metric} {chosen.value:g} at step {chosen.step}\n"
    )
    for taken in chosen.took_over:
        note += f"# At step {taken.step} it went on from the state of trial {taken.trial}; the values here are the last ones\n"
    try:
        write_whole(path, note + yaml.safe_dump(document.data, sort_keys=False), PRIVATE_FILE)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    return path


class Looks:
    """Says when a study is worth another look: its journal has grown, or its trials have trained on for some time."""

    def __init__(self, study: StudyDir) -> None:
        self._study = study
        self._size = -1
        self._at = 0.0

    def due(self) -> bool:
        """Whether it is time for one."""
        size = self._study.journal.stat().st_size if self._study.journal.exists() else 0
        if size == self._size and time.monotonic() - self._at < LOOK_SECONDS:
            return False
        self._size, self._at = size, time.monotonic()
        return True


def wait(study: StudyDir, on_look: Callable[[], None] = lambda: None, deadline: float | None = None) -> int | None:
    """Wait for the end of a study; returns its exit code, or None at the deadline (monotonic seconds)."""
    while study.goes_on():
        if deadline is not None and time.monotonic() > deadline:
            return None
        on_look()
        time.sleep(ASK_SECONDS if study.tune.packing else POLL_SECONDS)
    end = study.end()
    return int(end["exit_code"]) if end else int(Exit.GAVE_UP)


def stop(study: StudyDir, *, now: bool, wait: bool) -> str:
    """Have the trials save and stop, and the study with them; returns what came of it."""
    if not study.goes_on():
        left = [run for run in study.trial_runs() if goes_on(run)]
        for run in left:  # the study's process was killed, and its trials were not
            stopping.stop(run, now=now, wait=wait)
        return f"{study.id} is not running: {study.state}" + (f"; {len(left)} trials were stopped" if left else "")
    if not is_locked(study.lock_file):
        packing.cancel(study)
        write_end(study, Exit.RESUMABLE, "it was taken back from the cluster before it began")
        return f"{study.id} was taken back from the cluster; go on: dtrain resume {study.id}"
    study.mailbox.post(mailbox.STOP, "now" if now else "leave")
    deadline = time.monotonic() + STOP_SECONDS
    while wait and study.goes_on() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if wait and study.goes_on():
        raise ClusterError(f"{study.id} does not answer", f"See what it does: {study.log}")
    return f"{study.id} has stopped; go on: dtrain resume {study.id}" if wait else f"{study.id} was asked to stop"


def resume(study: StudyDir, given: Sequence[Override] = ()) -> None:
    """Go on with a study that was stopped or killed, or that is given more trials or time; raises `UsageError` if it is done otherwise."""
    refuse_live(study)
    end = study.end()
    if given:
        _enlarge(study, given)
    elif end and end["exit_code"] == Exit.DONE:
        more = f"To train more trials: dtrain resume {study.id} --trials {2 * len(trials(study))}"
        raise UsageError(f"the study {study.id} is done: {end['reason']}", more)
    begin(StudyDir(study.path))


def _enlarge(study: StudyDir, given: Sequence[Override]) -> None:
    """Write other limits into the study's recipe; raises `UsageError` for anything else, and for fewer trials than there are."""
    if other := [option for where, _, option in given if where[0] != "tune" or where[-1] not in LIMITS]:
        known = ", ".join(f"tune.{key}" for key in LIMITS)
        raise UsageError(
            f"{other[0]}: a study goes on with the recipe that it began with",
            f"What can change are its limits: {known}.",
        )
    document, there = study.document(), len(trials(study))
    for where, value, option in given:
        document.put(where, value, option)
    with code_snapshot.used(study.code, str(study.facts["folder"])):
        job = recipe.from_document(document, Path(str(study.facts["folder"])), here=False, runs=study.runs)
    assert job.tune is not None, "a study's recipe has this section"
    wanted = tuning.trials_of(job.tune)
    if "trials" in (where[-1] for where, _, _ in given):
        if job.tune.early_stop == tuning.PBT:
            raise UsageError("a population keeps its size: with early_stop: pbt there are no more trials")
        if wanted <= there:
            raise UsageError(f"--trials is how many there are in the end, and {study.id} has {there}", "Name more.")
    write_whole(study.recipe, yaml.safe_dump(document.data, sort_keys=False), PRIVATE_FILE)


def remove(study: StudyDir) -> None:
    """Remove a study that has ended, with the runs of its trials; raises `UsageError` if it goes on."""
    if study.goes_on():
        raise UsageError(f"the study {study.id} goes on: nothing was removed", f"End it first: dtrain stop {study.id}")
    found = study.trial_runs()
    for run in found:
        removing.refuse_live(run)
    for run in found:
        removing.remove(removing.planned(run))
    shutil.rmtree(study.path)


def size(study: StudyDir) -> int:
    """Bytes that the study and its trials take on the disk."""
    return sum(removing.folder_bytes(path) for path in (study.path, *(run.path for run in study.trial_runs())))


def public(study: StudyDir) -> dict[str, Any]:
    """What `--json` prints."""
    from dataclasses import asdict

    found = trials(study)
    ranked = rank(found, mode(study))
    rows = [asdict(one) | {"run": study.trial(one.number).id} for one in found]
    has_best = study.tune.metric and ranked and ranked[0].value is not None and ranked[0].state != "failed"
    end = study.end() if not study.goes_on() else None
    return {
        "study": study.id,
        "state": study.state,
        "metric": study.tune.metric,
        "mode": mode(study),
        "best": ranked[0].number if has_best else None,
        "trials": rows,
        "folder": str(study.path),
        "exit_code": end["exit_code"] if end else None,
        "reason": end["reason"] if end else "",
    }
