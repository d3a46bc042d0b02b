"""Studies from Python: `dtrain.tune` begins one, `dtrain.Study` is one. Exported by `import dtrain`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain.common.errors import DtrainError, Exit
from dtrain.job import entrypoint
from dtrain.job import tune as tune_section
from dtrain.launch import recipe as recipes
from dtrain.launch.python_recipe import document_of
from dtrain.record.folder import default_root
from dtrain.runs import Folder, RecipeLike, Run, _overrides
from dtrain.study import control, folder, page
from dtrain.study.folder import StudyDir
from dtrain.study.journal import Trial


class StudyFailed(DtrainError):
    """A study that was waited for ended with an exit code other than 0."""

    def __init__(self, study: Study, exit_code: int, reason: str) -> None:
        super().__init__(f"{study.id}: {reason}", f"See it: dtrain status {study.id}")
        self.study = study
        self.exit_code = Exit(exit_code)


class Study:
    """One study, which goes on without this process; every property reads what is there now."""

    def __init__(self, name: str | os.PathLike[str], *, runs: Folder = None) -> None:
        self._study: StudyDir = folder.require(default_root(runs), os.fspath(name))

    @property
    def id(self) -> str:
        """The study's id, for `dtrain status`, `attach`, `stop`, `resume`, `report` and `rm`."""
        return self._study.id

    @property
    def path(self) -> Path:
        """The study's folder; those of its trials are beside it."""
        return self._study.path

    @property
    def state(self) -> str:
        """`running`, `done`, `stopped`, `failed` or `lost`."""
        return self._study.state

    @property
    def trials(self) -> list[Trial]:
        """All trials so far, by their numbers: `values`, `value`, `state`, `rungs`, `failure` …"""
        return control.trials(self._study)

    @property
    def best(self) -> Trial:
        """The best trial so far; raises `UsageError` if no trial has a value."""
        return control.best(self._study)

    def run_of(self, trial: Trial) -> Run:
        """The run of a trial."""
        return Run(self._study.trial(trial.number))

    def wait(self, timeout_seconds: float | None = None) -> Study:
        """Wait for the end; raises `StudyFailed` unless it is `done`, `TimeoutError` after the time. Ctrl-C leaves the study alone."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        code = control.wait(self._study, deadline=deadline)
        if code is None:
            raise TimeoutError(f"{self.id} goes on after {timeout_seconds:g} s")
        if code != Exit.DONE:
            raise StudyFailed(self, code, str((self._study.end() or {}).get("reason", "its process is gone")))
        return self

    def stop(self, *, now: bool = False, wait: bool = True) -> str:
        """Have its trials save and stop, and the study with them; `resume` goes on. Returns what came of it."""
        return control.stop(self._study, now=now, wait=wait)

    def resume(self, **limits: Any) -> Study:
        """Go on after a stop or a kill: no trial is lost, and none is trained twice. `limits`: `trials`, `budget`, `samples` … of the whole
        study, if there are to be more."""
        control.resume(self._study, [(("tune", key), value, f"argument {key}") for key, value in limits.items()])
        self._study = StudyDir(self._study.path)
        return self

    def status(self) -> dict[str, Any]:
        """Return what `dtrain status --json` prints."""
        return control.public(self._study)

    def __repr__(self) -> str:
        return f"<dtrain.Study {self.id}: {self.state}>"

    def _repr_html_(self) -> str:
        """The table of trials for a notebook."""
        return page.trials_table(self._study)


def tune(
    recipe: RecipeLike,
    over: Mapping[str, Any] | None = None,
    *,
    seed: int | None = None,
    runs: Folder = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Study:
    """Begin a study, which goes on without this process: many trials of a recipe with other values, of which the best is wanted.

    `over`: key of the recipe → what is tried, as in the section `tune` of a recipe: `{"params.lr": "log(1e-5, 1e-1)", "params.width": [64, 128]}`;
    `options` are the other keys of that section (`metric`, `trials`, `early_stop` …) and those of `dtrain.run`, `seed` is that of the choice of
    values, `settings` as of `dtrain.run`."""
    entrypoint.end_import()
    mine, others = tune_section.taken({"sampler_seed": seed, **options})
    given = _overrides(settings, others)
    given += [(("tune", "over", key), value, f"over {key}") for key, value in (over or {}).items()]
    given += [(("tune", key), value, f"argument {key}") for key, value in mine.items()]
    if isinstance(recipe, str | os.PathLike):
        document, where = recipes.read(Path(recipe), given)
    else:
        document, where = document_of(recipe), Path.cwd()
    study = control.make(document, where, default_root(runs), given)
    control.begin(study)
    return Study(study.path)
