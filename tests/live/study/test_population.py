"""Real populations: trials that go on from the state of better ones."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, dtrain, wait_for
from studies import begin, digest, digests, has_lines, kill, seen, story

from dtrain.record import event_log
from dtrain.record.events import AttemptStarted, CheckpointSaved, StateTakenOver
from dtrain.record.folder import RunDir
from dtrain.report.audit import audit
from dtrain.study.folder import StudyDir

pytest.importorskip("optuna")
PBT = (
    *("--early-stop", "pbt", "--trials", "6", "--at-once", "2", "--set", "tune.keep=0.5"),
    *("--set", "tune.rungs=[18, 36]", "--set", "tune.perturb=[params.lr, params.dropout]"),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> StudyDir:
    study = begin(tmp_path_factory.mktemp("undisturbed"), *PBT)
    dtrain("wait", str(study.path))
    return study


def lineage(study: StudyDir) -> list[Any]:
    return [one["took_over"] for one in seen(study)["trials"]]


def test_the_worse_trials_go_on_from_checkpoints_of_better_ones(undisturbed: StudyDir) -> None:
    trials = seen(undisturbed)["trials"]
    assert {one["state"] for one in trials} == {"done"} and {one["step"] for one in trials} == {54}
    taken = [(one, taken) for one in trials for taken in one["took_over"]]
    assert {one["step"] for _, one in taken} == {18, 36}
    for trial, one in taken:
        run, other = undisturbed.trial(trial["number"]), undisturbed.trial(one["trial"])
        (mine,) = [
            event
            for event in event_log.read(run.events)
            if isinstance(event, StateTakenOver) and event.step == one["step"]
        ]
        theirs = [
            event.weights
            for event in event_log.read(other.events)
            if isinstance(event, CheckpointSaved) and event.step == one["step"]
        ]
        assert mine.run == other.id and mine.weights in theirs
    for trial in trials:
        run = undisturbed.trial(trial["number"])
        assert [event.step for event in event_log.read(run.events) if isinstance(event, AttemptStarted)] == [0, 18, 36]
        assert run.job().params == {key.partition(".")[2]: value for key, value in trial["values"].items()}
        assert (found := audit(run)) and found.clean and len(found.took_over) == len(trial["took_over"])


def test_weights_and_optimizer_are_those_of_the_better_run_gone_on_with_by_hand(
    undisturbed: StudyDir, tmp_path: Path
) -> None:
    trials = seen(undisturbed)["trials"]
    trial = next(one for one in trials if [taken["step"] for taken in one["took_over"]] == [36])
    taken = trial["took_over"][0]
    other = trials[taken["trial"]]
    assert not other["took_over"], "this test wants a trial that went its own way"
    dtrain(
        "run", recipe_alone(tmp_path), *sets(other["values"]), "--set", "train.until=36", "--runs", str(tmp_path / "r")
    )
    (run,) = (RunDir(path) for path in (tmp_path / "r").iterdir())
    dtrain("resume", str(run.path), *sets(taken["values"]), "--set", "train.until=null")
    assert digest(run) == digest(undisturbed.trial(trial["number"]))


def recipe_alone(folder: Path) -> str:
    path = folder / "alone.yaml"
    path.write_text((PROGRAMS / "tuned.yaml").read_text().replace("tuned.py", str(PROGRAMS / "tuned.py")))
    return str(path)


def sets(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value!r}")]


def test_a_population_that_was_killed_again_and_again_has_the_same_lineage(
    undisturbed: StudyDir, tmp_path: Path
) -> None:
    study = begin(tmp_path, *PBT)
    for lines in (4, 20, 26, 27, 28, 45, 52):
        wait_for(partial(has_lines, study, lines), f"{lines} lines in the journal")
        kill(study)
        dtrain("resume", str(study.path), "--detach")
    dtrain("wait", str(study.path))
    assert story(study) == story(undisturbed) and lineage(study) == lineage(undisturbed)
    assert digests(study) == digests(undisturbed)
    assert all((found := audit(run)) and found.clean and not found.repeated_steps for run in study.trial_runs())


def test_lineage_is_in_the_reports(undisturbed: StudyDir, tmp_path: Path) -> None:
    count = sum(map(len, lineage(undisturbed)))
    assert dtrain("report", str(undisturbed.path)).stdout.count("from the state of trial") == count
    dtrain("report", str(undisturbed.path), "--html", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    assert "Lineage" in page and "Parallel coordinates" in page
    (number, *_) = [one["number"] for one in seen(undisturbed)["trials"] if one["took_over"]]
    run = undisturbed.trial(number)
    assert f"{undisturbed.id}-" in dtrain("audit", str(run.path)).stdout
    assert json.loads(dtrain("audit", str(run.path), "--json").stdout)["took_over"]
    assert "cannot be repeated alone" in dtrain("reproduce", str(run.path), check=2).stderr


def test_a_population_whose_model_changes_its_shape_says_what_to_leave_out(tmp_path: Path) -> None:
    over = ("--over", "params.width=4,8,16", "--sampler", "random", "--trials", "4")
    rungs = ("--early-stop", "pbt", "--set", "tune.rungs=[18]")
    study = begin(tmp_path, *over, *rungs)
    dtrain("wait", str(study.path))
    failed = [one["failure"] for one in seen(study)["trials"] if one["state"] == "failed"]
    assert failed and all("out of tune.perturb" in one for one in failed)
