"""The folder of a study, beside those of its trials: `study.json`, `recipe.yaml`, `code.zip`, the journal of Optuna, and how it ended."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.common.errors import Exit, RunNotFound, require_format
from dtrain.common.files import folder_clock, write_json
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject
from dtrain.job.job import Job
from dtrain.job.tune import Tune
from dtrain.record.folder import RunDir, all_runs
from dtrain.record.lock import is_locked
from dtrain.record.mailbox import Mailbox

if TYPE_CHECKING:
    from dtrain.launch.yaml_source import Document

SIGN = "study.json"
STATES = {Exit.DONE: "done", Exit.RESUMABLE: "stopped"}
FORMAT = 1
"""Format number of study.json."""


@dataclass(frozen=True)
class StudyDir:
    """A study's folder and the paths in it."""

    path: Path

    @property
    def id(self) -> str:
        """The study's id: the name of its folder."""
        return self.path.name

    @property
    def runs(self) -> Path:
        """The folder of its trials' runs, and of all others."""
        return self.path.parent

    @property
    def recipe(self) -> Path:
        """The recipe that the study began with, with everything that was said beside it."""
        return self.path / "recipe.yaml"

    @property
    def code(self) -> Path:
        """The user's code that all trials train from; see `dtrain.record.code_snapshot`."""
        return self.path / "code.zip"

    @property
    def journal(self) -> Path:
        """Every trial, its values at rungs and its end, in the format of Optuna's JournalStorage."""
        return self.path / "trials.journal"

    @property
    def log(self) -> Path:
        """What the study's process prints."""
        return RunDir(self.path).logs / "supervisor.log"

    @property
    def lock_file(self) -> Path:
        """Held by the study's one process."""
        return self.path / "study.lock"

    @property
    def mailbox(self) -> Mailbox:
        """Requests to the study's process."""
        return Mailbox(self.path / "requests")

    @property
    def end_file(self) -> Path:
        """Exit code and reason; not there while the study goes on."""
        return self.path / "end.json"

    @cached_property
    def facts(self) -> JsonObject:
        """Where its recipe came from. Raises `RunNotFound` if that cannot be read."""
        try:
            found: JsonObject = json.loads((self.path / SIGN).read_text())
            require_format(str(self.path / SIGN), found["format"], FORMAT)
            return found | {"folder": str(found["folder"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunNotFound(f"{self.path / SIGN} cannot be read: {error}") from None

    def document(self) -> Document:
        """The recipe, with the values that a trial of its own has left open."""
        from dtrain.launch import yaml_source

        return yaml_source.parse(self.recipe.read_text(), str(self.recipe))

    @cached_property
    def job(self) -> Job:
        """The job of the recipe, whose section `tune` says what is tried."""
        from dtrain.launch import recipe
        from dtrain.record import code_snapshot

        folder = str(self.facts["folder"])
        with code_snapshot.used(self.code, folder):
            return recipe.from_document(self.document(), Path(folder), here=False, runs=self.runs)

    @property
    def tune(self) -> Tune:
        """What is tried, and how."""
        assert self.job.tune is not None, "a study is made of a recipe with this section"
        return self.job.tune

    def trial(self, number: int) -> RunDir:
        """The run of a trial, which need not be there."""
        return RunDir(self.runs / f"{self.id}-{number}")

    def trial_runs(self) -> list[RunDir]:
        """The runs of its trials that are there."""
        lead = f"{self.id}-"
        return [run for run in all_runs(self.runs) if run.id.startswith(lead) and run.id[len(lead) :].isdigit()]

    def age_seconds(self) -> float:
        """Time since the study was made, by the clock of the folder's file system."""
        return folder_clock(self.path) - (self.path / SIGN).stat().st_mtime

    def goes_on(self) -> bool:
        """Whether a process works on the study, as far as this machine can see, or a cluster is going to start one."""
        return is_locked(self.lock_file) or self.submitted()

    def submitted(self) -> bool:
        """Whether a cluster has the study in its queue, or runs it."""
        submitted = None if self.end_file.exists() else RunDir(self.path).submitted()
        if submitted is None:
            return False
        from dtrain.launch import registry

        cluster = registry.cluster(submitted.cluster, self.job.cluster.options)
        return not cluster.state(RunDir(self.path), submitted.reference).over

    @property
    def state(self) -> str:
        """`running`, `done`, `stopped`, `failed` or, if its process was killed, `lost`."""
        if self.goes_on():
            return "running"
        end = self.end()
        return STATES.get(Exit(end["exit_code"]), "failed") if end else "lost"

    def end(self) -> JsonObject | None:
        """The exit code and the reason; None if it goes on, or was killed."""
        with suppress(OSError, ValueError):
            found: JsonObject = json.loads(self.end_file.read_text())
            return found
        return None


def write_facts(study: StudyDir, folder: Path, source: str) -> None:
    """Make the folder a study; `folder` is where the recipe's code lies, `source` its file."""
    facts = {"format": FORMAT, "folder": str(folder), "source": source}
    write_json(study.path / SIGN, facts)


def write_end(study: StudyDir, code: Exit, reason: str, hint: str = "") -> None:
    """Write down how a study has ended."""
    write_json(study.end_file, {"exit_code": int(code), "reason": reason, "hint": hint})


def is_study(path: Path) -> bool:
    """Whether a folder is a study's."""
    return (path / SIGN).is_file()


def all_studies(root: Path) -> list[StudyDir]:
    """The studies in a folder of runs, the oldest first."""
    found = [StudyDir(path.absolute()) for path in root.iterdir() if is_study(path)] if root.is_dir() else []
    return sorted(found, key=lambda study: (study.path / SIGN).stat().st_mtime)


def find(root: Path, name: str) -> StudyDir | None:
    """The study with this path, id or beginning of an id; None if there is none. Raises `RunNotFound` for several."""
    if name and is_study(Path(name)):
        return StudyDir(Path(name).absolute())
    fitting = [study for study in all_studies(root) if name and study.id.startswith(name)]
    fitting = [study for study in fitting if study.id == name] or fitting
    if len(fitting) > 1:
        ids = ", ".join(study.id for study in fitting)
        raise RunNotFound(f"'{name}' begins the ids of {len(fitting)} studies: {ids}", "Give more of it.")
    return fitting[0] if fitting else None


def of_trial(run: RunDir) -> StudyDir | None:
    """The study that a run is a trial of; None for any other run."""
    study = StudyDir(run.path.parent / run.id.rpartition("-")[0])
    return study if run.id.rpartition("-")[2].isdigit() and is_study(study.path) else None


def require(root: Path, name: str) -> StudyDir:
    """The study that was meant; raises `RunNotFound`."""
    found = find(root, name)
    if found is None:
        known = ", ".join(study.id for study in all_studies(root)[-3:])
        raise RunNotFound(f"no study '{name}' in {root.absolute()}", f"The newest are: {known or 'none'}.")
    return found
