"""Metrics of all held-out samples at once are those of one call with all of them, on any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import PROGRAMS, Live, finished, start

TRAIN = "train={steps: 6, global_batch: 16, log_every: 3, evaluate_every: 3}"


def recipe(folder: Path, code: str, strategy: str = "ddp") -> str:
    folder.mkdir(exist_ok=True)
    kind = "function" if code.endswith(":train") else "task"
    (folder / "r.yaml").write_text(f"{kind}: {PROGRAMS / code}\nstrategy: {strategy}\ntrack: []\ntrain: {{steps: 1}}\n")
    return str(folder / "r.yaml")


def held_out(live: Live) -> list[dict[str, float]]:
    return [event["values"] for event in live.events("evaluation")]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Live:
    folder = tmp_path_factory.mktemp("one")
    options = ("--workers", "1", "--set", TRAIN, "--set", "train.shards=4")
    return finished(recipe(folder, "curves.py:Curves"), *options, runs=folder / "runs")


def test_one_worker_has_the_area_of_all_samples(one: Live) -> None:
    first, last = held_out(one)
    assert first.keys() == {"auc", "object", "first", "last"}
    assert 0.5 < last["auc"] <= 1
    assert last["object"] == pytest.approx(last["auc"], abs=1e-6)
    assert last["last"] == 1.0
    assert not one.events("user_warned"), "that some samples are of one class is no mistake"


def test_a_mistake_in_it_shows_before_the_first_step(tmp_path: Path) -> None:
    settings = ("--workers", "2", "--set", TRAIN, "--set", "params={fault: name}")
    with start(recipe(tmp_path, "curves.py:Curves"), *settings, runs=tmp_path / "runs") as live:
        text = live.finish(code=1)
    assert "NameError: name 'scroes' is not defined" in text
    assert not live.events("training_started")


@pytest.mark.parametrize(
    "options",
    [
        ("--workers", "2"),
        ("--workers", "4"),
        ("--workers", "2", "--set", "strategy=fsdp"),
        pytest.param(("--workers", "2", "--set", "strategy=horovod"), marks=pytest.mark.horovod),
    ],
    ids=["two", "four", "sharded", "horovod"],
)
def test_any_number_of_workers_has_the_same(options: tuple[str, ...], tmp_path: Path, one: Live) -> None:
    settings = ("--set", TRAIN, "--set", "train.shards=4", *options)
    live = finished(recipe(tmp_path, "curves.py:Curves"), *settings, runs=tmp_path / "runs")
    for mine, theirs in zip(held_out(live), held_out(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_beside_means_and_for_what_decides(tmp_path: Path) -> None:
    settings = (
        "--workers",
        "2",
        "--set",
        TRAIN,
        "--set",
        "params={means: true}",
        "--set",
        "checkpoint.keep_best={metric: auc, mode: max}",
    )
    live = finished(recipe(tmp_path, "curves.py:Curves"), *settings, runs=tmp_path / "runs")
    assert [values.keys() for values in held_out(live)] == [{"loss", "auc", "object", "first", "last"}] * 2


def test_in_a_function(tmp_path: Path) -> None:
    live = finished(
        recipe(tmp_path, "curves.py:train"),
        "--workers",
        "2",
        "--set",
        "train={steps: 6, global_batch: 16}",
        runs=tmp_path / "runs",
    )
    (values,) = held_out(live)
    assert values["object"] == pytest.approx(values["auc"], abs=1e-6)


def test_what_is_no_array_of_samples_is_refused(tmp_path: Path) -> None:
    settings = ("--workers", "2", "--set", TRAIN, "--set", "params={fault: scalar}")
    with start(recipe(tmp_path, "curves.py:Curves"), *settings, runs=tmp_path / "runs") as live:
        text = live.finish(code=1)
    assert (
        "curves.py: Curves.outputs gave a Tensor of shape (); expected arrays with the samples along the first axis"
        in text
    )


@pytest.mark.tensorflow
def test_under_tensorflow(tmp_path: Path) -> None:
    found = []
    for name, options in {
        "one": ("--workers", "1"),
        "replicas": ("--workers", "2"),
        "processes": ("--workers", "2", "--set", "strategy=multi_worker_mirrored"),
    }.items():
        settings = ("--set", TRAIN, "--set", "train.shards=4", *options)
        folder = tmp_path / name
        live = finished(recipe(folder, "curves_tf.py:Curves", "mirrored"), *settings, runs=folder / "runs")
        found.append(held_out(live))
    one, *others = found
    assert one[-1]["object"] == pytest.approx(one[-1]["auc"], abs=0.01)
    for other in others:
        for mine, theirs in zip(other, one, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3)
