"""Real studies: frozen and thawed trials, failures, and processes that are killed."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, dtrain, wait_for
from studies import RECIPE, begin, digest, digests, has_lines, journaled, kill, seen, story

import dtrain as dt
from dtrain.record import event_log
from dtrain.record.events import AttemptStarted
from dtrain.record.folder import RunDir
from dtrain.record.lock import last_mark
from dtrain.report.audit import audit
from dtrain.study import folder
from dtrain.study.folder import StudyDir

pytest.importorskip("optuna")
TINY = str(PROGRAMS / "tiny.yaml")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> StudyDir:
    study = begin(tmp_path_factory.mktemp("undisturbed"))
    dtrain("wait", str(study.path))
    return study


def test_a_trial_that_waited_at_every_rung_has_the_weights_of_one_that_never_stopped(
    undisturbed: StudyDir, tmp_path: Path
) -> None:
    found = seen(undisturbed)
    best = undisturbed.trial(found["best"])
    attempts = [event.step for event in event_log.read(best.events) if isinstance(event, AttemptStarted)]
    assert attempts == [0, 2, 6, 18]
    sets = [
        word
        for key, value in found["trials"][found["best"]]["values"].items()
        for word in ("--set", f"{key}={value!r}")
    ]
    dtrain("run", RECIPE, *sets, "--runs", str(tmp_path))
    (alone,) = (RunDir(path) for path in tmp_path.iterdir())
    assert digest(best) == digest(alone)


def test_a_study_that_was_killed_again_and_again_is_the_same_trial_by_trial(
    undisturbed: StudyDir, tmp_path: Path
) -> None:
    study = begin(tmp_path)
    for lines in (1, 3, 8, 13, 21, 34):
        wait_for(partial(has_lines, study, lines), f"{lines} lines in the journal")
        kill(study)
        dtrain("resume", str(study.path), "--detach")
    dtrain("wait", str(study.path))
    assert story(study) == story(undisturbed)
    assert digests(study) == digests(undisturbed)
    assert all((found := audit(run)) and found.clean and not found.repeated_steps for run in study.trial_runs())


def test_most_trials_are_stopped_early_and_the_report_says_what_that_saved(
    undisturbed: StudyDir, tmp_path: Path
) -> None:
    found = seen(undisturbed)
    states = [one["state"] for one in found["trials"]]
    assert len(states) == 9 and states.count("done") == 1 and states.count("stopped early") == 8
    shown = dtrain("status", str(undisturbed.path)).stdout
    assert all(len(line) <= 80 for line in shown.splitlines()[2:])
    assert shown.splitlines()[3].split()[:2] == ["1", str(found["best"])]
    assert "early stopping left out" in dtrain("report", str(undisturbed.path)).stdout
    dtrain("report", str(undisturbed.path), "--html", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    assert all(title in page for title in ("Best so far", "Importance", "Slices", "Trials"))


def test_a_study_is_stopped_and_goes_on_with_what_it_had(tmp_path: Path) -> None:
    study = begin(
        tmp_path,
        "--set",
        "train.steps=5400",
        "--set",
        "train.evaluate_every=600",
        "--trials",
        "2",
        "--early-stop",
        "none",
    )
    wait_for(lambda: study.trial(0).events.exists() and b'"metrics"' in study.trial(0).events.read_bytes(), "a step")
    dtrain("stop", study.id, "--runs", str(tmp_path))
    assert seen(study)["state"] == "stopped" and seen(study)["exit_code"] == 4
    assert dtrain("status", "--runs", str(tmp_path)).stdout.startswith(f"{study.id}: stopped"), "what was started last"
    assert f"{study.id} (stopped)" in dtrain("ps", "--runs", str(tmp_path)).stdout
    dtrain("run", RECIPE, "--runs", str(tmp_path), "--set", "train.steps=2")
    assert "2 of 2" in dtrain("status", "--runs", str(tmp_path)).stdout
    dtrain("resume", study.id, "--runs", str(tmp_path))
    assert [one["state"] for one in seen(study)["trials"]] == ["done", "done"]
    (one,) = {len([1 for event in event_log.read(study.trial(0).events) if isinstance(event, AttemptStarted)])}
    assert one == 2
    dtrain("rm", "last", "--runs", str(tmp_path), "--yes")
    assert len(study.trial_runs()) == 1, "of what is named last, the run alone is removed"
    refused = dtrain("rm", "tuned", "--runs", str(tmp_path), "--yes", check=2).stderr
    assert "of other runs" in refused
    dtrain("rm", study.id, "--runs", str(tmp_path), "--yes")
    assert len(list(tmp_path.iterdir())) == 1


def test_trials_whose_supervisors_are_killed_go_on(tmp_path: Path) -> None:
    study = begin(
        tmp_path,
        "--set",
        "train.steps=5400",
        "--set",
        "train.evaluate_every=600",
        "--trials",
        "1",
        "--early-stop",
        "none",
    )
    run = study.trial(0)
    wait_for(lambda: run.events.exists() and b'"metrics"' in run.events.read_bytes(), "a step")
    os.kill(int(last_mark(run.claims).split()[1]), signal.SIGKILL)
    dtrain("wait", study.id, "--runs", str(tmp_path))
    assert seen(study)["trials"][0]["state"] == "done"


def test_a_trial_that_a_person_stops_is_no_failure_and_the_study_goes_on(tmp_path: Path) -> None:
    steps = ("--set", "train.steps=5400", "--set", "train.evaluate_every=60")
    study = begin(tmp_path, *steps, "--trials", "2", "--early-stop", "none")
    run = study.trial(0)
    wait_for(lambda: run.events.exists() and b'"evaluation"' in run.events.read_bytes(), "an evaluation")
    dtrain("stop", run.id, "--runs", str(tmp_path))
    dtrain("wait", study.id, "--runs", str(tmp_path))
    first, second = seen(study)["trials"]
    assert first["state"] == "stopped early" and first["failure"] == "stopped by dtrain stop"
    assert first["step"] > 0 and first["value"] is not None and second["state"] == "done"


def test_a_trial_that_fails_is_a_failed_trial_with_its_class_and_the_study_goes_on(tmp_path: Path) -> None:
    over = ("--over", "params.fail=['', nan, bug]", "--sampler", "grid", "--trials", "3")
    recipe = grid_recipe(tmp_path)
    study = begin(tmp_path / "runs", *over, recipe=recipe)
    dtrain("wait", str(study.path))
    states = {one["values"]["params.fail"]: (one["state"], one["failure"]) for one in seen(study)["trials"]}
    assert states[""] == ("done", "")
    assert states["nan"][0] == states["bug"][0] == "failed"
    assert "nonsense" in states["bug"][1] and states["bug"][1].startswith("bug:")
    assert states["nan"][1].startswith("not finite: the loss is nan")


def grid_recipe(tmp_path: Path) -> str:
    text = Path(RECIPE).read_text().partition("tune:")[0] + "track: []\n"
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("tuned.py", str(PROGRAMS / "tuned.py")) + "tune: {metric: accuracy}\n")
    return str(path)


def test_the_same_failure_in_the_first_three_trials_ends_the_study(tmp_path: Path) -> None:
    done = dtrain("tune", RECIPE, "--set", "params.fail=bug", "--runs", str(tmp_path), check=1)
    assert "the first 3 trials failed in the same way: bug: " in done.stdout and "nonsense" in done.stdout
    (study,) = folder.all_studies(tmp_path)
    assert len(study.trial_runs()) == 3


def test_a_metric_that_no_trial_reports_is_found_in_the_first_trial(tmp_path: Path) -> None:
    arguments = (
        "--over",
        "params.width=8,16",
        "--metric",
        "auc",
        "--set",
        "train.evaluate_every=2",
        "--set",
        "resources.workers=1",
    )
    done = dtrain("tune", TINY, *arguments, "--runs", str(tmp_path), check=2)
    assert "no trial reports 'auc': the first one reports" in done.stderr and "loss" in done.stderr
    (study,) = folder.all_studies(tmp_path)
    assert len(study.trial_runs()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--over", "params.depth=[1, 2]"], "params.depth"),
        (["--over", "train.global_bach=[16, 32]"], "Did you mean 'global_batch'"),
        (["--over", "train.global_batch=[16, many]"], "train.global_batch"),
        (["--sampler", "tpee"], "Did you mean 'tpe'"),
        (["--over", "params.lr"], "not of the form"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_is_started(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = dtrain("tune", RECIPE, *arguments, "--runs", str(tmp_path / "runs"), check=2)
    assert said in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


def test_trials_that_train_at_the_same_time_are_all_accounted_for_after_a_kill(tmp_path: Path) -> None:
    study = begin(tmp_path, "--at-once", "3", "--trials", "7")
    wait_for(lambda: journaled(study) >= 12, "some trials")
    kill(study)
    before = len(study.trial_runs())
    assert "lost" in dtrain("status", study.id, "--runs", str(tmp_path)).stdout
    dtrain("resume", study.id, "--runs", str(tmp_path))
    found = seen(study)
    assert before <= len(found["trials"]) == len(study.trial_runs()) == 7
    assert {one["state"] for one in found["trials"]} <= {"done", "stopped early"}
    assert all((done := audit(run)) and done.clean for run in study.trial_runs())


def test_a_study_from_python_has_a_best_trial_and_its_run(tmp_path: Path) -> None:
    (tmp_path / "tuned.py").write_text((PROGRAMS / "tuned.py").read_text())
    recipe: dict[str, Any] = {
        "name": "py",
        "task": str(tmp_path / "tuned.py:Tuned"),
        "train": {"steps": 12, "evaluate_every": 6},
        "track": [],
    }
    score = "def small(metrics):\n    return metrics['held-out accuracy'][-1][1] - 1e-3 * len(metrics['loss'])\n"
    (tmp_path / "score.py").write_text(score)
    study = dt.tune(
        recipe,
        {"params.width": [4, 16], "params.lr": "log(1e-3, 1)"},
        metric="last(accuracy)",
        trials=3,
        runs=tmp_path / "runs",
    )
    assert study.wait() is study and study.state == "done" and len(study.trials) == 3
    assert study.best.value == max(trial.value or 0 for trial in study.trials)
    assert study.run_of(study.best).metrics()["held-out accuracy"][-1][1] == study.best.value
    assert dt.Study(study.id, runs=tmp_path / "runs").best == study.best
    own = dt.tune(
        recipe, {"params.width": [4, 16]}, metric=f"{tmp_path}/score.py:small", trials=1, runs=tmp_path / "runs"
    ).wait()
    metrics = own.run_of(own.best).metrics()
    assert own.best.value == pytest.approx(metrics["held-out accuracy"][-1][1] - 1e-3 * len(metrics["loss"]))
    with pytest.raises(dt.UsageError, match=r"over params\.layers"):
        dt.tune(recipe, {"params.layers": []}, metric="accuracy", runs=tmp_path / "runs")


def test_the_recipe_of_the_best_trial_is_a_file_that_trains_the_same(undisturbed: StudyDir) -> None:
    written = PROGRAMS / "tuned-best.yaml"
    try:
        dtrain("plan", "--best", str(undisturbed.path))
        values = seen(undisturbed)["trials"][seen(undisturbed)["best"]]["values"]
        text = written.read_text()
        assert all(f"{key.partition('.')[2]}: {value}" in text for key, value in values.items()) and "tune:" not in text
    finally:
        written.unlink(missing_ok=True)


def test_a_function_with_a_loop_of_its_own_is_stopped_at_rungs_too(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text((PROGRAMS / "tiny.py").read_text())
    recipe = tmp_path / "loop.yaml"
    recipe.write_text(
        "name: loop\nfunction: tiny.py:train\ntrain: {epochs: 1, global_batch: 50, log_every: 1}\ntrack: []\n"
        "tune: {over: {params.width: [4, 8, 16]}, metric: last(loss), sampler: grid, early_stop: asha, rungs: [4, 12, 99]}\n"
    )
    study = begin(tmp_path / "runs", recipe=str(recipe))
    dtrain("wait", str(study.path))
    trials = seen(study)["trials"]
    assert sorted(list(map(int, one["rungs"])) for one in trials) == [[4], [4], [4, 12]]
    assert [one["step"] for one in trials if one["state"] == "done"] == [20]


def test_a_study_whose_time_is_over_starts_nothing_more(tmp_path: Path) -> None:
    study = begin(tmp_path, "--budget", "2s", "--trials", "500")
    assert "done" in dtrain("wait", str(study.path)).stdout
    assert 1 <= len(seen(study)["trials"]) < 500
