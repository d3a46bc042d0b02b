"""Runs whose samples are fetched by data workers: the weights are those of a run without any, whatever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, killed, process_tree, start, stopped, wait_for

STEPS = 30
OPTIONS = (
    "--workers", "2", "--set", "checkpoint.every_steps=5", "--set", f"train.steps={STEPS}", "--set", "train.global_batch=16",
    "--set", "train.log_every=1",
)  # fmt: skip


def recipe(folder: Path, target: str = "task: pictures.py:Task") -> str:
    kind, _, name = target.partition(": ")
    (folder / "r.yaml").write_text(f"{kind}: {PROGRAMS / name}\nstrategy: ddp\n")
    return str(folder / "r.yaml")


def workers(number: int | str) -> tuple[str, ...]:
    return ("--set", f"data.workers={number}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """Without data workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return finished(recipe(folder), *OPTIONS, *workers(0), runs=folder / "runs")


def assert_as_if_nothing_happened(live: Live, undisturbed: Live) -> None:
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()
    assert live.events("evaluation")[-1]["values"] == undisturbed.events("evaluation")[-1]["values"]
    live.assert_clean_audit(steps=STEPS)


def data_workers(live: Live, rank: int, attempt: int = 1) -> list[int]:
    """Process ids of a rank's data workers."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in process_tree(live.pid(rank, attempt))}
    return [pid for pid, name in names.items() if name == "dtrain-data"]


@pytest.mark.parametrize("number", [1, 4, "auto"])
def test_results_do_not_depend_on_data_workers(number: int | str, tmp_path: Path, undisturbed: Live) -> None:
    live = finished(recipe(tmp_path), *OPTIONS, *workers(number), runs=tmp_path / "runs")
    assert_as_if_nothing_happened(live, undisturbed)
    assert live.events("metrics")[-1]["data_workers"] >= 1


def test_killed_workers_and_data_workers_leave_no_trace(tmp_path: Path, undisturbed: Live) -> None:
    with start(recipe(tmp_path), *OPTIONS, *workers(2), "--set", "params.pause=0.05", runs=tmp_path / "runs") as live:
        live.wait_step(6)
        wait_for(lambda: len(data_workers(live, 0)) == 2, "its data workers")
        live.kill(0)
        live.wait_step(12, attempt=2)
        victim = wait_for(lambda: data_workers(live, 1, attempt=2), "its data workers")[0]
        os.kill(victim, signal.SIGKILL)
        live.finish()
    assert len(live.events("failure_occurred")) == 1
    assert "a data worker was killed by SIGKILL" in live.output(1)
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_function_fetches_ahead_too_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = recipe(tmp_path, "function: pictures.py:train")
    alone = finished(path, *OPTIONS, *workers(0), runs=tmp_path / "alone")
    live = killed(path, *OPTIONS, *workers(2), "--set", "params.pause=0.02", runs=tmp_path / "killed", step=12, rank=1)
    assert_as_if_nothing_happened(live, alone)


def test_another_number_of_workers_trains_on_the_same_samples(tmp_path: Path, undisturbed: Live) -> None:
    options = (*OPTIONS, *workers(2), "--set", "train.shards=2")  # with it dropout does not depend on the workers
    live = stopped(recipe(tmp_path), *options, "--set", "params.pause=0.05", runs=tmp_path / "runs", step=8)
    out = dtrain("resume", str(live.run.path), "--workers", "1", "--set", "params.pause=0")
    assert "done" in out.stdout
    live.assert_clean_audit(steps=STEPS)
    losses = live.losses()
    assert losses == pytest.approx(undisturbed.losses(), rel=1e-5)


def test_a_sample_that_raises_is_a_bug_that_names_it(tmp_path: Path) -> None:
    live = finished(recipe(tmp_path), *OPTIONS, *workers(2), "--set", "params.bad=13", runs=tmp_path / "runs", code=1)
    failure = live.events("failure_occurred")[0]
    assert failure["kind"] == "bug"
    assert "picture 13 is cut off" in failure["message"]
    assert "sample 13 of pictures.py: Task.data('train')" in failure["message"]
    assert failure["where"].startswith("pictures.py")


def test_a_sample_that_kills_its_data_worker_once_costs_nothing(tmp_path: Path, undisturbed: Live) -> None:
    params = ("--set", "params.deadly=20", "--set", f"params.marker={tmp_path / 'marker'}")
    live = finished(recipe(tmp_path), *OPTIONS, *workers(1), *params, runs=tmp_path / "runs")
    assert not live.events("failure_occurred")
    assert_as_if_nothing_happened(live, undisturbed)


def test_waiting_for_data_is_shown(tmp_path: Path) -> None:
    slow = ("--set", "params.seconds=0.01", "--set", "train.steps=10")
    with start(recipe(tmp_path), *OPTIONS, *slow, *workers(0), runs=tmp_path / "runs") as live:
        out = live.finish()
    assert live.events("metrics")[-1]["data_wait"] > 0.5
    assert "% waiting for data" in out
    assert "of the training time waited for it, with 0 data workers" in out


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.memory=2TB", "'2TB' is no amount of memory: write it like 500MB or 2GB"),
        ("data.workers=-1", "data.workers"),
        ("data.workers=lots", "data.workers"),
        ("data.prefetch=0", "data.prefetch"),
        ("data.worker=2", "Did you mean 'workers'"),
    ],
)
def test_mistakes_in_the_section_are_located(setting: str, words: str, tmp_path: Path) -> None:
    assert words in dtrain("plan", recipe(tmp_path), "--set", setting, *OPTIONS, check=2).stderr
