"""The journal of a study that compares nothing (a sweep): its values are known beforehand, and it needs no Optuna."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain.job.tune import Tune
from dtrain.launch import tuning
from dtrain.launch.tuning import Domain
from dtrain.study.journal import Journal, Trial, cut_to_whole_lines


class PlainJournal(Journal):
    """A line of JSON for each trial that begins or ends. Only the study's process writes to it."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self._path = path
        if write and path.exists():
            cut_to_whole_lines(path)

    def trials(self) -> list[Trial]:
        """All trials so far, by their numbers."""
        found: dict[int, dict[str, Any]] = {}
        for line in self._path.read_text().splitlines(keepends=True) if self._path.exists() else ():
            if line.endswith("\n"):
                facts = json.loads(line)
                found.setdefault(facts["number"], {}).update(facts)
        return [Trial(**facts) for facts in found.values()]

    def add(self, values: Mapping[str, Any], space: Mapping[str, Domain]) -> Trial:
        """Write a trial with these values to the journal."""
        trial = Trial(len(self.trials()), "running", dict(values), began=time.time())
        self._write(number=trial.number, state=trial.state, values=trial.values, began=trial.began)
        return trial

    def end(self, number: int, state: str, value: float | None = None, **facts: Any) -> None:
        """Write down the end of a trial: done, failed or stopped early."""
        self._write(number=number, state=state, value=value, **facts)

    def _write(self, **facts: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(facts) + "\n")


def needs_optuna(tune: Tune) -> bool:
    """Whether trials are compared, or their values chosen."""
    return bool(tune.metric) or tune.sampler != tuning.GRID


def opened(path: Path, name: str, tune: Tune, *, write: bool = False) -> Journal:
    """The journal of a study."""
    if not needs_optuna(tune):
        return PlainJournal(path, write=write)
    measure = tuning.measure(tune)
    return Journal(path, name, measure.mode if measure else "min", write=write)
