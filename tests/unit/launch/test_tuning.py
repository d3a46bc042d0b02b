"""The section `tune` of a recipe: what its values mean, and where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtrain.common.errors import UsageError
from dtrain.job.tune import Tune
from dtrain.launch import recipe
from dtrain.launch.tuning import Domain, domain, measure, samples_of
from dtrain.record.metric_curves import Curve

RECIPE = """\
task: task.py:Task
train:
  steps: 90
  evaluate_every: 10
tune:
"""
TASK = """\
class Task:
    def __init__(self, lr=0.1): ...
    def model(self): ...
    def optimizer(self, model): ...
    def data(self, split): ...
    def loss(self, model, batch): ...
    def metrics(self, model, batch):
        return {"accuracy": 1}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log(1e-5, 1e-1)", Domain("float", (), 1e-5, 0.1, 1, log=True)),
        ("uniform(0, 0.5)", Domain("float", (), 0.0, 0.5)),
        ("int(16, 256, step=16)", Domain("int", (), 16, 256, 16)),
        ("int(1, 1024, log)", Domain("int", (), 1, 1024, 1, log=True)),
        ([64, "a", None, [1, 2]], Domain("choice", (64, "a", None, [1, 2]))),
    ],
)
def test_a_space_is_read(text: Any, expected: Domain) -> None:
    assert domain(text) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("log(0, 1)", "a logarithm has no 0"),
        ("log(-1, 1)", "a logarithm has no -1"),
        ("uniform(1, 1)", "the first end must be below the second"),
        ("uniform(1)", "write a list"),
        ("uniform(0, 1, step=2)", "only int"),
        ("int(1, 2.5)", "no whole number"),
        ("int(1, 9, step=0)", "a step is a whole number above 0"),
        ("normal(0, 1)", "write a list"),
        ("uniform(0, inf)", "no end of a range"),
        ([], "the list is empty"),
        ([1, 1], "stands in the list twice"),
        (3, "one value"),
    ],
)
def test_a_wrong_space_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        domain(value)


def test_the_mode_follows_from_the_name() -> None:
    names = {"accuracy": "max", "last(val_loss)": "min", "mean(perplexity, 3)": "min", "best(f1)": "max"}
    assert {text: found.mode for text in names if (found := measure(Tune(metric=text)))} == names
    assert measure(Tune(metric="loss", mode="max")).mode == "max"  # type: ignore[union-attr]


def load(tmp_path: Path, section: str) -> Any:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "r.yaml").write_text(RECIPE + section)
    return recipe.load(tmp_path / "r.yaml").tune


def test_a_space_in_braces_is_whole_though_yaml_parts_it_at_its_commas(tmp_path: Path) -> None:
    over = load(
        tmp_path, "  metric: accuracy\n  over: {params.lr: log(1e-5, 1e-1), train.global_batch: int(16, 64, step=16)}\n"
    ).over
    assert over == {"params.lr": "log(1e-5, 1e-1)", "train.global_batch": "int(16, 64, step=16)"}


@pytest.mark.parametrize(
    ("section", "place", "said"),
    [
        (
            "  metric: accuracy\n  over:\n    params.lr: log(0, 1)\n",
            ":8:5: tune.over.params.lr",
            "a logarithm has no 0",
        ),
        ("  metric: accuracy\n  over:\n    params.lr: []\n", ":8:5:", "the list is empty"),
        ("  metric: acuracy\n  over:\n    params.lr: [1, 2]\n", ":6:3: tune.metric", "Did you mean 'accuracy'"),
        ("  metrik: accuracy\n  over:\n    params.lr: [1, 2]\n", ":6:3: tune.metrik", "Did you mean 'metric'"),
        ("  over:\n    params.lr: [1, 2]\n", ":5:1: tune", "tune.metric is missing"),
        ("  metric: accuracy\n  over:\n    params.lr: uniform(0, 1)\n  sampler: grid\n", ":8:5:", "a grid has a list"),
        ("  metric: accuracy\n  over:\n    params.lr: [1, 2]\n  early_stop: ahsa\n", ":9:3:", "Did you mean 'asha'"),
        ("  metric: accuracy\n  over:\n    params.lr: [1, 2]\n  samples: 10X\n", ":9:3:", "write it like 500k, 10M"),
        ("  metric: accuracy\n  over:\n    train.seed: [1, 2]\n  early_stop: pbt\n", ":8:5:", "cannot change then"),
        (
            "  metric: accuracy\n  over:\n    params.lr: [1, 2]\n  early_stop: pbt\n  perturb: [params.l]\n",
            ":10:3:",
            "params.lr",
        ),
        (
            "  metric: accuracy\n  over:\n    params.lr: [1, 2]\n  early_stop: pbt\n  keep: 0.2\n",
            ":10:3:",
            "at least half",
        ),
        (
            "  metric: accuracy\n  over:\n    params.lr: [1, 2]\n  early_stop: pbt\n  trials: 1\n",
            ":10:3:",
            "2 at least",
        ),
        ("  metric: accuracy\n  over:\n    params.lr: [1, 2]\n  budget: soon\n", ":9:3:", "is no time"),
        (
            "  metric: accuracy\n  over:\n    params.lr: [1, 2]\n  early_stop: asha\n  rungs: [3, 2]\n",
            ":10:3:",
            "rising",
        ),
    ],
)
def test_a_wrong_section_is_an_error_with_its_place(section: str, place: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, section)
    assert place in caught.value.message and said in caught.value.message, caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"), [("accuracy", 0.9), ("last(accuracy)", 0.5), ("mean(accuracy, 2)", 0.7), ("best(loss)", 1.0)]
)
def test_a_trial_is_judged_by_its_best_its_last_or_the_mean_of_its_last_values(text: str, expected: float) -> None:
    judged = measure(Tune(metric=text))
    curves = {"accuracy": Curve(), "held-out accuracy": Curve(), "loss": Curve()}
    for step, value in enumerate((0.1, 0.9, 0.5)):
        curves["held-out accuracy"].add(step, value)
        curves["accuracy"].add(step, 1.0)
        curves["loss"].add(step, 3.0 - step)
    assert judged is not None and judged.value(curves) == pytest.approx(expected)
    assert judged.value({}) is None


def test_numbers_of_samples_are_read() -> None:
    read = {text: samples_of(text) for text in ("500k", "10M", "2G", "1.5K", 64, "0", "M", "-1", "1e6")}
    assert list(read.values()) == [500_000, 10**7, 2 * 10**9, 1500, 64, None, None, None, None]
