"""How much a study trains: its budgets, and what a finished one is given more of."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import dtrain
from studies import RECIPE, begin, seen, story

import dtrain as dt
from dtrain.study import folder
from dtrain.study.folder import StudyDir

pytest.importorskip("optuna")
ALL = ("--early-stop", "none", "--set", "train.steps=10")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> StudyDir:
    """A study that `submit --tune` began and that is done."""
    runs = tmp_path_factory.mktemp("limits")
    sets = ("--set", "tune.trials=2", "--set", "tune.early_stop=none", "--set", "train.steps=10")
    name = dtrain("submit", RECIPE, "--tune", *sets, "--runs", str(runs), "--quiet").stdout.strip()
    dtrain("wait", name, "--runs", str(runs))
    return folder.require(runs, name)


def test_a_finished_study_gets_more_trials(done: StudyDir) -> None:
    before = story(done)
    assert "--trials 4" in dtrain("resume", str(done.path), check=2).stderr
    assert "has 2" in dtrain("resume", str(done.path), "--trials", "2", check=2).stderr
    assert "began with" in dtrain("resume", str(done.path), "--set", "train.steps=20", check=2).stderr
    assert ": done - 3 of 3" in dtrain("resume", str(done.path), "--trials", "3").stdout
    assert story(done)[:2] == before and len(done.trial_runs()) == 3
    study = dt.Study(done.path).resume(trials=4).wait()
    assert len(study.trials) == 4


def test_the_trials_that_come_later_are_those_of_a_study_that_had_them_from_the_beginning(
    done: StudyDir, tmp_path: Path
) -> None:
    whole = begin(tmp_path, *ALL, "--trials", "4")
    dtrain("wait", str(whole.path))
    assert story(whole) == story(done)


def test_a_study_ends_after_so_many_samples_of_all_trials(tmp_path: Path) -> None:
    study = begin(tmp_path, *ALL, "--trials", "50", "--samples", "0.9k")
    assert "tune.samples is spent" in dtrain("wait", str(study.path)).stdout + str(study.end())
    assert len(seen(study)["trials"]) == 3, "each trains on 10 batches of 32 samples"
    assert "960 samples" in dtrain("report", str(study.path)).stdout
    dtrain("resume", str(study.path), "--set", "tune.samples=1k")
    assert len(seen(study)["trials"]) == 4


def test_a_study_ends_after_so_many_device_hours(tmp_path: Path) -> None:
    study = begin(tmp_path, *ALL, "--trials", "50", "--device-hours", "0.0000001")
    dtrain("wait", str(study.path))
    assert "tune.device_hours is spent" in str(study.end()) and len(seen(study)["trials"]) == 1


def test_more_trials_are_for_studies_alone(done: StudyDir) -> None:
    assert "is a run" in dtrain("resume", str(done.trial(0).path), "--trials", "3", check=2).stderr
