"""Ranks that train one model, or are told that they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import PROGRAMS, finished, start

from dtrain.drill.fault import Fault, encode

OPTIONS = (
    str(PROGRAMS / "tiny.yaml"), "--set", "task=encoder.py:Encoder", "--set", "train.steps=12", "--set", "checkpoint.every_steps=6",
)  # fmt: skip


def losses(folder: Path, *options: str) -> list[float]:
    live = finished(*OPTIONS, *options, runs=folder)
    return [event["values"]["loss"] for event in live.events("metrics")]


def test_a_method_of_the_model_trains_it_on_all_ranks_alike(tmp_path: Path) -> None:
    plain = losses(tmp_path / "plain", "--set", "params={plain: true}")
    assert losses(tmp_path / "method", "--set", "params={}") == pytest.approx(plain, rel=1e-5)
    assert losses(tmp_path / "alone", "--set", "params={}", "--workers", "1") == pytest.approx(plain, rel=1e-4)


def test_ranks_that_part_end_the_run_with_the_tensor_and_the_rank(tmp_path: Path) -> None:
    with start(*OPTIONS, "--set", "params={past: true}", runs=tmp_path) as live:
        text = live.finish(code=1)
    assert (
        "encoder.py: Encoder: the ranks train different models: body.weight (on rank 1), body.bias (on rank 1), head.weight"
        in text
    )
    assert "are not averaged" in text
    assert not live.events("checkpoint_saved")


@pytest.mark.parametrize("workers", [2, 3])
def test_a_model_that_changes_in_a_pass_ends_alike_after_a_kill(workers: int, tmp_path: Path) -> None:
    faults = {"DTRAIN_HOOKS": "dtrain.drill.injection=" + encode((Fault("kill", 1, "step", 9),))}
    settings = (*OPTIONS, "--set", "task=passes.py:Passes", "--set", "params={}", "--workers", str(workers), "--set", "train.shards=null",
                "--set", "train.global_batch=24", "--set", "train.sanity_check=false")  # fmt: skip
    undisturbed = finished(*settings, runs=tmp_path / "undisturbed")
    calls = [event["values"]["calls"] for event in undisturbed.events("metrics")]
    assert calls == [float(step) for step in range(1, 13)], "one call of the loss each step"
    with start(*settings, runs=tmp_path / "killed", **faults) as killed:
        killed.finish()
    assert len(killed.events("attempt_started")) == 2
    assert killed.weights() == undisturbed.weights()
