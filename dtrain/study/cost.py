"""What the trials of a study cost: samples, device-hours and time, what early stopping saved, and whether a budget is spent."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.common import durations
from dtrain.common.lazy_dataclass import dataclass
from dtrain.launch import tuning
from dtrain.study.folder import StudyDir
from dtrain.study.journal import Trial


@dataclass(frozen=True)
class Cost:
    """What was spent, or saved."""

    steps: int = 0
    samples: int = 0
    device_hours: float = 0.0
    """Hours times workers."""


def spent(study: StudyDir, found: Sequence[Trial]) -> Cost:
    """What all trials took, as of the newest rung or the end of each."""
    steps = sum(one.step for one in found)
    samples = sum(one.step * _of(study, one, "train.global_batch", study.job.train.global_batch) for one in found)
    hours = sum(one.seconds * _workers(study, one) for one in found) / 3600
    return Cost(steps, samples, hours)


def saved(study: StudyDir, found: Sequence[Trial]) -> Cost:
    """What training the trials that were stopped early to the end would have taken, at the speed of each so far."""
    whole = max((one.step for one in found if one.state == "done"), default=0)
    cut = [(one, whole - one.step) for one in found if one.state == "stopped early" and one.step < whole]
    steps = sum(left for _, left in cut)
    samples = sum(left * _of(study, one, "train.global_batch", study.job.train.global_batch) for one, left in cut)
    hours = sum(one.seconds / one.step * left * _workers(study, one) for one, left in cut if one.step) / 3600
    return Cost(steps, samples, hours)


def budget_spent(study: StudyDir, found: Sequence[Trial]) -> str:
    """The key of the budget that is spent; '' while there is some left of all."""
    tune, cost = study.tune, spent(study, found)
    time = durations.seconds_of(tune.budget or "")
    if time is not None and study.age_seconds() >= time:
        return "tune.budget"
    if tune.samples is not None and cost.samples >= (tuning.samples_of(tune.samples) or 0):
        return "tune.samples"
    if tune.device_hours is not None and cost.device_hours >= tune.device_hours:
        return "tune.device_hours"
    return ""


def _workers(study: StudyDir, trial: Trial) -> int:
    return _of(study, trial, "resources.workers", study.job.resources.workers)


def _of(study: StudyDir, trial: Trial, key: str, otherwise: int) -> int:
    """The value of a key in a trial, if it is one that is tried."""
    return int(trial.values.get(key, otherwise))
