"""`train.matmul`: how precisely matrices of float32 are multiplied, as the framework itself has it in the worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import PROGRAMS, dtrain, finished

KERAS = pytest.mark.tensorflow


def recipe(folder: Path, task: str, strategy: str) -> str:
    file = folder / "r.yaml"
    file.write_text(
        f"task: {PROGRAMS / 'multiplied.py'}:{task}\nstrategy: {strategy}\ntrack: []\ntrain: {{steps: 2, global_batch: 4}}\n"
    )
    return str(file)


@pytest.mark.parametrize(
    ("task", "strategy", "matmul", "said"),
    [
        ("Torch", "ddp", "null", "highest"),
        ("Torch", "ddp", "medium", "medium"),
        ("Torch", "fsdp", "high", "high"),
        pytest.param("Torch", "horovod", "high", "high", marks=pytest.mark.horovod),
        pytest.param("Keras", "mirrored", "null", "in TF32", marks=KERAS),
        pytest.param("Keras", "mirrored", "highest", "in fp32", marks=KERAS),
        pytest.param("Keras", "mirrored", "medium", "in TF32", marks=KERAS),
    ],
)
def test_the_framework_multiplies_as_the_recipe_says(
    task: str, strategy: str, matmul: str, said: str, tmp_path: Path
) -> None:
    live = finished(recipe(tmp_path, task, strategy), "--set", f"train.matmul={matmul}", runs=tmp_path / "runs")
    assert f"multiplies {said}\n" in live.output(0)


@pytest.mark.parametrize(
    ("strategy", "more", "why"),
    [
        ("ddp", "train.exact=true", "train.exact needs whole float32, which all GPUs have: leave train.matmul out"),
        ("tpu", "resources.device=tpu", "train.matmul is for GPUs and CPUs: leave it out"),
    ],
)
def test_what_cannot_have_it_is_refused(strategy: str, more: str, why: str, tmp_path: Path) -> None:
    name = recipe(tmp_path, "Torch" if strategy == "ddp" else "Keras", strategy)
    assert why in dtrain("plan", name, "--set", "train.matmul=high", "--set", more, check=2).stderr


def test_exact_computes_in_whole_float32(tmp_path: Path) -> None:
    sets = ("--set", "train.matmul=highest", "--set", "train.exact=true")
    live = finished(recipe(tmp_path, "Torch", "ddp"), *sets, runs=tmp_path / "runs")
    assert "multiplies highest\n" in live.output(0)
