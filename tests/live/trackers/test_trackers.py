"""Real runs and real trackers: what each of them holds after three kills, and after a stop and a resume."""

from __future__ import annotations

import getpass
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tracker_files
from live import PROGRAMS, Live, dtrain, start, wait_for

THIRD_PARTY = PROGRAMS / "third_party"
ENVIRONMENT = {"WANDB_MODE": "offline", "PYTHONPATH": str(THIRD_PARTY)}
STEPS = list(range(1, 61))


def track(folder: Path) -> str:
    """All trackers that there are, a third party's among them."""
    return (
        f"track=[tensorboard, csv, {{name: wandb, project: elsewhere}}, {{name: mlflow, uri: {folder}/mlruns}}, "
        f"{{name: prometheus, folder: {folder}/prometheus}}, {{name: elsewhere, file: {folder}/lines}}]"
    )


def arguments(folder: Path) -> tuple[str, ...]:
    return (str(PROGRAMS / "tiny.yaml"), "--set", "params.pause=0.02", "--set", track(folder))


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "lines"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def killed_thrice(folder: Path) -> Live:
    temporary = folder / "tmp"
    temporary.mkdir()
    labels = ("--tag", "dataset=v2", "--note", "the first try")
    with start(*arguments(folder), *labels, runs=folder / "runs", TMPDIR=str(temporary), **ENVIRONMENT) as live:
        for attempt, (step, rank) in enumerate(((15, 1), (31, 0), (47, 1)), start=1):
            live.wait_step(step, attempt=attempt)
            live.kill(rank, attempt=attempt)
        live.finish()
    assert len(live.events("attempt_started")) == 4
    assert not live.events("tracker_failed"), live.events("tracker_failed")
    caches = {f"dtrain-{os.getuid()}", f"torchinductor_{getpass.getuser()}"}
    left = {path.name for path in temporary.iterdir()} - caches
    assert not left, "no tracker's library leaves temporary files"
    return live


def test_tensorboard_reads_every_step_once_and_the_kills_as_marks(killed_thrice: Live) -> None:
    curves, marks = tracker_files.tensorboard(killed_thrice.run)
    losses = killed_thrice.losses()
    assert [step for step, _ in curves["train/loss"]] == STEPS
    # The replay is bit-identical: it does not matter which of the attempts was drawn.
    assert [value for _, value in curves["train/loss"]] == pytest.approx([losses[step] for step in STEPS], rel=1e-6)
    assert [value for _, value in curves["run/attempt"]] == [1, 2, 3, 4]
    assert [value for _, value in curves["run/failures"]] == [1, 2, 3]
    assert [text for _, text in marks if "SIGKILL" in text and "rank" in text] != []
    assert sum("failure" in text for _, text in marks) == 3
    assert [step for step, _ in marks] == sorted(step for step, _ in marks)
    wanted = {
        "optimizer/learning_rate", "optimizer/gradient_norm", "speed/samples_per_second", "speed/data_wait", "eval/loss",
        "checkpoint/stall_seconds", "run/goodput",
    }  # fmt: skip
    assert wanted <= set(curves)
    assert [value for _, value in curves["optimizer/learning_rate"]] == pytest.approx(
        [0.01 * (1 - (step - 1) / 120) for step in STEPS]
    )
    assert all(value > 0 for _, value in curves["optimizer/gradient_norm"])
    assert len(curves["optimizer/gradient_norm"]) == 60


def test_csv_has_every_step_once(killed_thrice: Live) -> None:
    rows = tracker_files.csv_rows(killed_thrice.run)
    losses = {int(row["step"]): float(row["value"]) for row in rows if row["name"] == "train/loss"}
    assert losses == killed_thrice.losses()
    assert sum(row["name"] == "train/loss" for row in rows) == 60
    assert [row["mark"] for row in rows if row["mark"]][-1] == "end with exit code 0: finished"


def test_wandb_has_one_run_whose_steps_rise(killed_thrice: Live) -> None:
    (file,) = tracker_files.wandb(killed_thrice.run)
    assert (file.id, file.project, file.exit_code) == (killed_thrice.run.id, "elsewhere", 0)
    assert (file.tags, file.notes) == (["dataset:v2"], "the first try")
    steps = [row["_step"] for row in file.rows]
    assert steps == sorted(set(steps))
    assert {row["_step"]: row["train/loss"] for row in file.rows if "train/loss" in row} == killed_thrice.losses()
    assert 1 <= sum("mark/failure" in row for row in file.rows) <= 3


def test_mlflow_has_one_run_that_is_finished(killed_thrice: Live, folder: Path) -> None:
    ((client, run),) = tracker_files.mlflow(folder / "mlruns", "tiny")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {one.step: one.value for one in history} == killed_thrice.losses()
    assert len(history) == 60
    assert run.info.status == "FINISHED"
    assert (run.data.tags["dataset"], run.data.tags["mlflow.note.content"]) == ("v2", "the first try")
    assert run.data.params["train.global_batch"] == "32"
    assert sum("failure" in text for name, text in run.data.tags.items() if name.startswith("dtrain.mark")) == 3


def test_the_prometheus_file_says_how_the_run_ended(killed_thrice: Live, folder: Path) -> None:
    (path,) = (folder / "prometheus").iterdir()
    values = tracker_files.prometheus(path)
    assert values["dtrain_running", ""] == 0
    assert values["dtrain_exit_code", ""] == 0
    assert values["dtrain_step", ""] == 60


def test_a_third_partys_tracker_gets_every_entry_once(killed_thrice: Live, folder: Path) -> None:
    found = [line for line in lines(folder) if "number" in line]
    assert [line["number"] for line in found] == list(range(len(found)))
    assert [line["step"] for line in found if "train/loss" in line["values"]] == STEPS
    assert lines(folder)[-1] == {"closed": 0}


def test_a_resumed_run_goes_on_in_the_same_runs_of_its_trackers(tmp_path: Path) -> None:
    with start(*arguments(tmp_path), runs=tmp_path / "runs", **ENVIRONMENT) as live:
        live.wait_step(25)
        live.process.send_signal(signal.SIGINT)
        live.finish(code=4)
    values = tracker_files.prometheus(tmp_path / f"prometheus/{live.run.id}.prom")
    assert (values["dtrain_running", ""], values["dtrain_exit_code", ""]) == (0, 4)
    slower = ("--workers", "1", "--set", "params.pause=0.03")
    with start("last", *slower, runs=tmp_path / "runs", command="resume", **ENVIRONMENT) as again:
        again._run = live.run
        again.wait_step(30, attempt=2)
        path = tmp_path / f"prometheus/{live.run.id}.prom"
        wait_for(lambda: tracker_files.prometheus(path).get(("dtrain_value", "train/loss")), "the newest loss")
        assert tracker_files.prometheus(path)["dtrain_running", ""] == 1
        again.finish()
    curves, marks = tracker_files.tensorboard(live.run)
    assert [step for step, _ in curves["train/loss"]] == STEPS
    assert [value for _, value in curves["run/workers"]] == [2, 1]
    assert sum(text.startswith("resume") for _, text in marks) == 1
    ((client, run),) = tracker_files.mlflow(tmp_path / "mlruns", "tiny")
    assert [one.step for one in client.get_metric_history(run.info.run_id, "train/loss")] == STEPS
    files = tracker_files.wandb(live.run)
    assert [file.id for file in files] == [live.run.id] * 2
    assert [row["_step"] for file in files for row in file.rows if "train/loss" in row] == STEPS
    rows = tracker_files.csv_rows(live.run)
    assert [int(row["step"]) for row in rows if row["name"] == "train/loss"] == STEPS


@pytest.mark.parametrize("mood", ["raise", "hang"])
def test_a_tracker_that_is_down_ends_no_run_and_what_is_missing_is_logged_later(mood: str, tmp_path: Path) -> None:
    (tmp_path / "lines.mood").write_text(mood)
    recipe, setting = str(PROGRAMS / "tiny.yaml"), f"track=[{{name: elsewhere, file: {tmp_path}/lines}}]"
    with start(recipe, "--set", setting, runs=tmp_path / "runs", PYTHONPATH=str(THIRD_PARTY)) as live:
        out = live.finish()
    assert out.count("tracker elsewhere: the newest values are not logged") == 2  # as it happens, and in the summary
    assert lines(tmp_path) == []
    (tmp_path / "lines.mood").unlink()
    done = dtrain("track", live.run.id, "--runs", str(tmp_path / "runs"), PYTHONPATH=str(THIRD_PARTY))
    assert done.stdout == "elsewhere: everything is logged\n"
    assert "not logged" not in dtrain("status", live.run.id, "--runs", str(tmp_path / "runs")).stdout
    assert [line["step"] for line in lines(tmp_path) if "train/loss" in line.get("values", {})] == STEPS


def test_tensorboard_is_the_default_and_can_be_left_out(tmp_path: Path) -> None:
    recipe = str(PROGRAMS / "tiny.yaml")
    with start(recipe, "--set", "track=null", runs=tmp_path / "runs") as live:
        live.finish()
    assert [path.name for path in (live.run.path / "trackers").iterdir()] == ["tensorboard"]
    with start(recipe, "--set", "track=[]", runs=tmp_path / "none") as live:
        live.finish()
    assert not (live.run.path / "trackers").exists()


def test_a_killed_supervisor_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    setting = f"track=[tensorboard, csv, {{name: elsewhere, file: {tmp_path}/lines}}]"
    given = (str(PROGRAMS / "tiny.yaml"), "--set", "params.pause=0.02", "--set", setting)
    with start(*given, runs=tmp_path / "runs", **ENVIRONMENT) as live:
        live.wait_step(25)
        live.process.kill()
        live.process.communicate()
        # The trackers' processes may still be logging what was there: the next ones wait for them.
        with start("last", runs=tmp_path / "runs", command="resume", **ENVIRONMENT) as again:
            again._run = live.run
            again.finish()
    curves, _ = tracker_files.tensorboard(live.run)
    assert [step for step, _ in curves["train/loss"]] == STEPS
    rows = tracker_files.csv_rows(live.run)
    assert [int(row["step"]) for row in rows if row["name"] == "train/loss"] == STEPS
    assert [line["step"] for line in lines(tmp_path) if "train/loss" in line.get("values", {})] == STEPS


def test_a_function_has_the_rate_of_its_optimizer(tmp_path: Path) -> None:
    function = (
        "--set",
        "task=null",
        "--set",
        f"function={PROGRAMS}/tiny.py:train",
        "--set",
        "train.steps=5",
        "--set",
        "track=null",
    )
    with start(str(PROGRAMS / "tiny.yaml"), *function, runs=tmp_path / "runs") as live:
        live.finish()
    curves, _ = tracker_files.tensorboard(live.run)
    assert curves["optimizer/learning_rate"] == [(step, pytest.approx(0.01)) for step in range(1, 6)]
    assert "optimizer/gradient_norm" not in curves


def test_a_scripts_nodes_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "sleep.yaml").write_text("script: sleep\nargs: [9]\n")
    with start(str(tmp_path / "sleep.yaml"), runs=tmp_path / "runs") as live:
        live.finish()
    curves, marks = tracker_files.tensorboard(live.run)
    assert 0 <= curves["node/node0/cpu"][0][1] <= 1
    assert curves["node/node0/memory_bytes"][0][1] > 0
    assert marks[-1][1] == "end with exit code 0: finished"
