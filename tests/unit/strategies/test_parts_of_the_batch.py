"""By default a worker computes its whole part of the batch in one pass; parts and passes may differ by a sample."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, stopped

from dtrain.job.job import Job, PluginChoice, Resources, Train
from dtrain.launch import planner

STEPS = 12
TRAIN = f"train: {{steps: {STEPS}, global_batch: 32, seed: 5, clip_norm: 0.5, log_every: 1}}\n"


def recipe(folder: Path, strategy: str) -> str:
    (folder / "r.yaml").write_text(
        f"task: {PROGRAMS / 'tiny_mlp.py'}:Mlp\nstrategy: {strategy}\ncheckpoint: {{every_steps: 4}}\n{TRAIN}"
    )
    return str(folder / "r.yaml")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """One worker, one pass."""
    folder = tmp_path_factory.mktemp("one")
    return finished(recipe(folder, "ddp"), "--workers", "1", runs=folder / "runs")


@pytest.mark.live
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", pytest.param("horovod", marks=pytest.mark.horovod)])
def test_three_workers_share_a_batch_of_32(strategy: str, tmp_path: Path, one: Live) -> None:
    live = finished(recipe(tmp_path, strategy), "--workers", "3", runs=tmp_path / "runs")
    assert live.losses() == pytest.approx(one.losses(), rel=1e-5)
    live.assert_clean_audit(steps=STEPS)


@pytest.mark.live
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_passes_of_at_most_five_samples(strategy: str, tmp_path: Path, one: Live) -> None:
    options = ("--workers", "2", "--set", "train.micro_batch=5")
    plan = dtrain("plan", recipe(tmp_path, strategy), *options).stdout
    assert "global batch 32: each worker computes 16 samples in 4 passes of 4" in plan
    live = finished(recipe(tmp_path, strategy), *options, runs=tmp_path / "runs")
    assert live.losses() == pytest.approx(one.losses(), rel=1e-5)
    live.assert_clean_audit(steps=STEPS)


@pytest.mark.live
def test_a_run_goes_on_with_three_of_four_workers(tmp_path: Path, one: Live) -> None:
    options = (recipe(tmp_path, "ddp"), "--workers", "4", "--set", "params.pause=0.1")
    live = stopped(*options, runs=tmp_path / "runs", step=4)
    dtrain("resume", str(live.run.path), "--workers", "3", "--set", "params.pause=0")
    assert [event["workers"] for event in live.events("attempt_started")] == [4, 3]
    assert live.losses() == pytest.approx(one.losses(), rel=1e-5)
    live.assert_clean_audit(steps=STEPS)


def job(strategy: str, workers: int, nodes: int, global_batch: int) -> Job:
    return Job(
        name="x", task="x.py:X", strategy=PluginChoice(strategy), folder="/", train=Train(steps=1, global_batch=global_batch),
        resources=Resources(workers=workers, nodes=nodes, min_workers=1),
    )  # fmt: skip


def fitting(strategy: str, workers: int, nodes: int, left: int, batch: int) -> int:
    plan = planner.make(job(strategy, workers, nodes, global_batch=batch))
    return next(n for n in range(left, 0, -1) if plan.fits(n))


def test_after_a_lost_node_all_the_others_train() -> None:
    assert fitting("ddp", 8000, 1000, 999, 8192) == 999
    assert fitting("fsdp", 16, 16, 15, 64) == 15
    assert fitting("horovod", 4, 4, 3, 64) == 3
    assert fitting("multi_worker_mirrored", 4, 4, 3, 64) == 2, "TensorFlow's replicas have equal parts"


def test_a_batch_smaller_than_the_workers_is_refused(tmp_path: Path) -> None:
    refused = dtrain("plan", recipe(tmp_path, "ddp"), "--workers", "33", check=2).stderr
    assert "a global batch of 32 cannot be divided by 33 workers" in refused


def test_unequal_parts_are_refused_if_the_strategy_needs_equal_ones(tmp_path: Path) -> None:
    refused = dtrain("plan", recipe(tmp_path, "mirrored"), "--workers", "3", check=2).stderr
    assert "a global batch of 32 cannot be divided by 3 workers: take 30 or 33" in refused
