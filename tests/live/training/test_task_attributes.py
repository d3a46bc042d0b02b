"""What a task keeps in its attributes is what its author's own loop would have, through kills and stops."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished

RECIPE = str(PROGRAMS / "attributes.yaml")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return finished(RECIPE, runs=tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("memory", [0, 1])
def test_a_killed_run_has_the_attributes_that_it_would_have_had(tmp_path: Path, undisturbed: Live, memory: int) -> None:
    live = finished(
        RECIPE, "--set", "params.kill=13", "--set", f"checkpoint.memory_every_steps={memory}", runs=tmp_path
    )
    assert len(live.events("failure_occurred")) == 1
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()
    assert not live.events("user_warned")


@pytest.mark.parametrize("target", ["task=attributes.py:Globals", "function=attributes.py:train"])
def test_globals_and_attributes_of_classes_are_kept(tmp_path: Path, target: str) -> None:
    recipe = PROGRAMS / "attributes.yaml"
    (tmp_path / "recipe.yaml").write_text(
        recipe.read_text().replace("task: attributes.py:Keeps", target.replace("=", ": "))
    )
    shutil.copy(PROGRAMS / "attributes.py", tmp_path)
    undisturbed = finished(str(tmp_path / "recipe.yaml"), runs=tmp_path / "runs")
    live = finished(str(tmp_path / "recipe.yaml"), "--set", "params.kill=13", runs=tmp_path / "runs")
    assert len(live.events("failure_occurred")) == 1
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()


def test_a_stopped_run_goes_on_with_them(tmp_path: Path, undisturbed: Live) -> None:
    live = finished(RECIPE, "--set", "train.until=8", runs=tmp_path)
    dtrain("resume", str(live.run.path), "--set", "train.until=null")
    live.see()
    assert live.weights() == undisturbed.weights()


def test_what_is_each_ranks_own_begins_anew_with_another_number_of_workers_and_that_is_said(tmp_path: Path) -> None:
    live = finished(RECIPE, "--set", "train.until=8", runs=tmp_path)
    shown = dtrain("resume", str(live.run.path), "--set", "train.until=null", "--workers", "1").stdout
    assert "Keeps: mean, scale differed between the workers, whose number has changed, and begin anew" in shown


def test_attributes_that_cannot_be_kept_are_named(tmp_path: Path) -> None:
    live = finished(RECIPE, "--set", "task=attributes.py:Parts", runs=tmp_path)
    texts = [event["text"] for event in live.events("user_warned")]
    assert [text.partition(" and is in no checkpoint: after a restart it begins anew")[0] for text in texts] == [
        "attributes.py: Parts: rows differs between the ranks, with more than a small value on each,",
        "attributes.py: Parts: words has more than 10,000 parts, or others than plain values,",
    ]


@pytest.mark.tensorflow
def test_a_task_of_keras_has_them_too(tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "tiny_mlp_tf.py", tmp_path)
    (tmp_path / "counting.py").write_text(
        "import random\nimport keras\nfrom tiny_mlp_tf import Mlp\n\n\nclass Counting(Mlp):\n    def __init__(self):\n        super().__init__()\n"
        "        self.calls, self.random, self.passes = 0, random.Random(3), keras.Variable(0.0)\n"
        "        self.seeds, self.mean = keras.random.SeedGenerator(1), keras.metrics.Mean()\n\n"
        "    def schedule(self, step, total):\n        self.calls += 1\n        self.passes.assign(self.passes + 1)\n"
        "        noise = float(keras.random.uniform((), seed=self.seeds))\n        self.mean.update_state(noise)\n"
        "        kept = float(self.passes) + float(self.mean.result())\n"
        "        return (0.5 + self.random.random() + noise) / (1 + 0.1 * self.calls + 0.1 * kept)\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        "task: counting.py:Counting\nstrategy: mirrored\nresources: {workers: 2}\ntrain: {steps: 12, global_batch: 8}\ntrack: []\n"
        "checkpoint: {every_steps: 4}\n"
    )
    undisturbed = finished(str(tmp_path / "recipe.yaml"), runs=tmp_path / "runs")
    live = finished(str(tmp_path / "recipe.yaml"), "--set", "train.until=7", runs=tmp_path / "runs")
    dtrain("resume", str(live.run.path), "--set", "train.until=null")
    live.see()
    assert live.weights() == undisturbed.weights()
