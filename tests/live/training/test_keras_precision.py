"""`strategy.precision: mixed_bfloat16` of the TensorFlow strategies: layers compute in it, weights stay in float32, and a kill changes no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, start

pytestmark = pytest.mark.tensorflow
RECIPE = str(PROGRAMS / "contract_tensorflow.yaml")
HALF = ("--workers", "2", "--set", "strategy.precision=mixed_bfloat16")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """An undisturbed run."""
    return finished(RECIPE, *HALF, runs=tmp_path_factory.mktemp("whole"))


def test_it_trains_nearly_as_in_float32_and_several_processes_as_one(whole: Live, tmp_path: Path) -> None:
    plain = finished(RECIPE, "--workers", "2", runs=tmp_path / "plain")
    several = finished(RECIPE, "--strategy", "multi_worker_mirrored", *HALF, runs=tmp_path / "several")
    assert whole.losses() != plain.losses()
    assert whole.losses() == pytest.approx(plain.losses(), rel=0.05)
    assert several.losses() == pytest.approx(whole.losses(), rel=1e-3)


def test_a_kill_changes_nothing(whole: Live, tmp_path: Path) -> None:
    with start(RECIPE, *HALF, "--set", "params.pause=0.05", runs=tmp_path) as live:
        live.wait_step(12)
        live.kill(0)
        live.finish()
    assert len(live.events("attempt_started")) == 2
    assert live.weights() == whole.weights()


def test_a_model_whose_outputs_are_bfloat16_is_measured(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"task: {PROGRAMS / 'curves_tf.py'}:Curves\nstrategy: {{name: mirrored, precision: mixed_bfloat16}}\ntrack: []\n"
        "train: {steps: 4, global_batch: 16}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), "--workers", "2", runs=tmp_path / "runs")
    assert live.events("evaluation")


def test_fp16_is_refused_by_name() -> None:
    said = dtrain("plan", RECIPE, "--set", "strategy.precision=mixed_float16", check=2).stderr
    assert "'fp32' or 'mixed_bfloat16'" in said
