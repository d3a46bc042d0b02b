"""Which checkpoints are made and kept, and when a run ends by itself: by evaluations, by steps, by the clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, killed, start, wait_for

from dtrain.checkpoint.names import newest_first

RECIPE = f"""
task: {PROGRAMS}/peaking.py:Peaking
strategy: ddp
resources: {{workers: 2, cpus_per_worker: 1}}
recovery: {{backoff_seconds: 0}}
"""


def recipe(folder: Path, train: str, checkpoint: str) -> str:
    path = folder / "peaking.yaml"
    numbers = "steps: 60, global_batch: 8, log_every: 5"
    path.write_text(f"{RECIPE}train: {{{numbers}, {train}}}\ncheckpoint: {{{checkpoint}}}\n")
    return str(path)


def left(live: Live) -> list[int]:
    return sorted(name.step for name in newest_first(path.name for path in live.run.checkpoints.iterdir()))


@pytest.mark.parametrize("at", [0, 42])
def test_the_newest_the_best_and_every_50th_stay(at: int, tmp_path: Path) -> None:
    best = "keep_best: {metric: score, mode: max, count: 2}"
    file = recipe(tmp_path, "evaluate_every: 10", f"every_steps: 5, keep: 1, keep_every: 25, {best}")
    options = (file, "--set", "params.pause=0.02")
    live = killed(*options, runs=tmp_path, step=at, rank=1) if at else finished(*options, runs=tmp_path)
    assert left(live) == [20, 25, 30, 50, 60], "20 is as good as 40, and earlier"


def test_a_checkpoint_is_made_at_every_evaluation_if_the_best_are_kept(tmp_path: Path) -> None:
    best = "keep_best: {metric: score, mode: max}"
    live = finished(recipe(tmp_path, "evaluate_every: 10", f"every_steps: 1000, keep: 1, {best}"), runs=tmp_path)
    assert [event["step"] for event in live.events("checkpoint_saved")] == [10, 20, 30, 40, 50, 60]
    assert left(live) == [30, 60]


@pytest.mark.parametrize("at", [0, 42])
def test_a_run_ends_when_its_evaluations_get_no_better(at: int, tmp_path: Path) -> None:
    train = "evaluate_every: 5, stop_when: {metric: score, mode: max, patience: 3}"
    options = (recipe(tmp_path, train, "every_steps: 10"), "--set", "params.pause=0.02")
    live = killed(*options, runs=tmp_path, step=at, rank=1) if at else finished(*options, runs=tmp_path)
    (end,) = live.events("run_ended")
    assert end["exit_code"] == 0
    assert end["reason"] == (
        "ended early at step 45: score was no better in 3 evaluations than at step 30 (0; train.stop_when)"
    )
    assert [event["step"] for event in live.events("evaluation")][-1] == 45
    assert live.events("checkpoint_saved")[-1]["step"] == 45
    assert "finished with 45" in live.output(0)
    live.assert_clean_audit(steps=45)


NO_METRIC = "there is no metric 'scores' in an evaluation, which has score. Did you mean 'score'?"


def test_a_metric_that_is_not_there_is_said_before_anything_is_started(tmp_path: Path) -> None:
    train, best = "evaluate_every: 5, stop_when: {metric: scores, mode: max}", "keep_best: {metric: scores, mode: max}"
    refused = dtrain("run", recipe(tmp_path, train, best), "--runs", str(tmp_path / "runs"), check=2).stderr
    assert f"train.stop_when.metric: {NO_METRIC}" in refused
    assert "peaking.yaml:6:" in refused
    assert f"checkpoint.keep_best.metric: {NO_METRIC}" in refused
    assert not (tmp_path / "runs").exists()


def test_a_metric_that_a_class_does_not_show_is_said_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(
        f"import sys\nsys.path.insert(0, {str(PROGRAMS)!r})\nfrom peaking import Peaking\nclass Hidden(Peaking): pass\n"
    )
    file = recipe(tmp_path, "evaluate_every: 5, stop_when: {metric: scores, mode: max}", "every_steps: 10")
    live = finished(file, "--set", f"task={tmp_path}/shown.py:Hidden", runs=tmp_path, code=2)
    assert f"train.stop_when: {NO_METRIC}" in live.events("failure_occurred")[0]["message"]
    assert not live.events("metrics")


def test_without_evaluations_nothing_is_started(tmp_path: Path) -> None:
    file = recipe(tmp_path, "stop_when: {metric: score, mode: max}", "keep_best: {metric: score, mode: max}")
    refused = dtrain("run", file, "--runs", str(tmp_path), check=2).stderr
    assert "stop_when looks at evaluations, and there is one at the end only: set train.evaluate_every" in refused
    assert "keep_best looks at evaluations" in refused


def test_the_clock_makes_checkpoints_and_no_number_of_steps_does(tmp_path: Path) -> None:
    file = recipe(tmp_path, "evaluate_every: 1000", "every_minutes: 0.01")
    with start(file, "--set", "params.pause=0.02", "--set", "train.steps=100000", runs=tmp_path) as live:
        wait_for(lambda: len(live.events("checkpoint_saved")) >= 3, "three checkpoints")
        dtrain("stop", str(live.run.path))
        live.finish(code=4)
    steps = [event["step"] for event in live.events("checkpoint_saved")]
    assert all(step % 5 == 0 for step in steps[:3]), steps
    shown = json.loads(dtrain("plan", file, "--json").stdout)
    assert shown
