"""A loop of one's own whose scheduler is made after the optimizer: every rate after a kill is that of an undisturbed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, dtrain, finished, start

from dtrain.drill.fault import Fault, encode

OPTIONS = (
    "--set",
    "function=schedules.py:train",
    "--set",
    "task=null",
    "--set",
    "train.steps=24",
    "--set",
    "train.log_every=1",
)


def rates(folder: Path, strategy: str, kill: int | None, **params: Any) -> tuple[list[tuple[int, float, float]], str]:
    """(step, rate, loss) of every step, and the digest of the last weights."""
    faults = {"DTRAIN_HOOKS": "dtrain.drill.injection=" + encode((Fault("kill", 1, "step", kill),))} if kill else {}
    given = (part for key, value in params.items() for part in ("--set", f"params.{key}={value}"))
    settings = (
        *OPTIONS,
        *given,
        "--set",
        f"strategy={strategy}",
        "--set",
        "checkpoint.every_steps=8",
        "--set",
        "params.norm=null",
    )
    with start(str(PROGRAMS / "tiny.yaml"), *settings, runs=folder, **faults) as live:
        live.finish()
    assert len(live.events("attempt_started")) == (2 if kill else 1)
    by_step = {event["step"]: (event["values"]["rate"], event["values"]["loss"]) for event in live.events("metrics")}
    return [(step, *values) for step, values in sorted(by_step.items())], live.weights()


@pytest.mark.parametrize("schedule", ["linear", "lambda", "one-cycle", "cyclic", "sequence"])
def test_rates_and_weights_after_a_kill_are_those_of_an_undisturbed_run(schedule: str, tmp_path: Path) -> None:
    undisturbed = rates(tmp_path / "undisturbed", "ddp", None, schedule=schedule)
    assert len(undisturbed[0]) == 24
    assert rates(tmp_path / "killed", "ddp", 12, schedule=schedule) == undisturbed


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("rate", ["tensor", "numpy"])
def test_a_rate_that_is_a_tensor_or_of_numpy_is_saved_and_restored(rate: str, strategy: str, tmp_path: Path) -> None:
    undisturbed = rates(tmp_path / "undisturbed", strategy, None, schedule="none", rate=rate)
    assert rates(tmp_path / "killed", strategy, 12, schedule="none", rate=rate) == undisturbed


@pytest.mark.parametrize("strategy", ["ddp", "horovod"])
def test_values_are_averaged_by_name_and_none_is_dropped(strategy: str, tmp_path: Path) -> None:
    options = (
        "--set",
        "function=reports.py:train",
        "--set",
        "task=null",
        "--set",
        "params={}",
        "--set",
        "train.log_every=5",
    )
    with start(
        str(PROGRAMS / "tiny.yaml"), *options, "--set", "train.steps=10", "--set", f"strategy={strategy}", runs=tmp_path
    ) as live:
        live.finish()
    found = {event["step"]: event["values"] for event in live.events("metrics")}
    assert (found[5]["easy"], found[5]["hard"], found[5]["odd"]) == (100.0, 7.0, 0.5)
    assert (found[10]["easy"], found[10]["hard"], found[10]["alone"]) == (100.0, 7.0, 3.0)


def test_a_setting_that_is_edited_applies_at_a_resume_and_is_said(tmp_path: Path) -> None:
    source = (PROGRAMS / "schedules.py").read_text()
    (tmp_path / "edited.py").write_text(source)
    (tmp_path / "r.yaml").write_text(
        "function: edited.py:train\nparams: {schedule: none}\nstrategy: ddp\nresources: {workers: 2}\n"
        "train: {steps: 24, global_batch: 16, log_every: 1, until: 8}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs")
    edited = source.replace("momentum=0.9", "momentum=0.5, weight_decay=0.1").replace("else 0.05", "else 0.02")
    (tmp_path / "edited.py").write_text(edited)
    dtrain("resume", str(live.run.path), "--set", "train.until=null", "--code", "new")
    (said,) = {event["text"] for event in live.events("user_warned") if "settings were edited" in event["text"]}
    for change in ("lr of group 0: 0.05 → 0.02", "momentum of group 0: 0.9 → 0.5", "weight_decay of group 0: 0 → 0.1"):
        assert change in said
    assert live.events("metrics", step=20)[0]["values"]["rate"] == pytest.approx(0.02)


def test_an_optimizer_with_what_no_checkpoint_holds_is_refused_before_the_first_step(tmp_path: Path) -> None:
    source = (PROGRAMS / "schedules.py").read_text()
    (tmp_path / "odd.py").write_text(
        source.replace("lambda model: torch.optim.SGD(model.parameters(), ",
                       "lambda model: torch.optim.SGD([{'params': model.parameters(), 'kept': object()}], ")
    )  # fmt: skip
    (tmp_path / "r.yaml").write_text(
        "function: odd.py:train\nparams: {schedule: none}\nstrategy: ddp\ntrain: {steps: 24, global_batch: 16}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs", code=1)
    assert (
        "a group of the optimizer holds an object of builtins.object" in live.events("failure_occurred")[0]["message"]
    )
    assert not live.events("training_started")


OWN = """
import torch

def train(context):
    model, optimizer = context.prepare(lambda: torch.nn.Linear(4, 1), lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(context.step, 300):
        loss = model(torch.ones(8, 4)).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        context.report(loss=loss)
"""


def test_a_loop_with_data_of_its_own_ends_at_its_last_step_and_states_no_samples(tmp_path: Path) -> None:
    """It does not say how many samples a step has."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(
        "name: own\nfunction: own.py:train\nresources: {workers: 2}\ntrain: {steps: 25, log_every: 5}\n"
    )
    live = finished(str(tmp_path / "own.yaml"), runs=tmp_path / "runs")
    assert [event["step"] for event in live.events("metrics")] == [5, 10, 15, 20, 25]
    assert live.events("checkpoint_saved")[-1]["step"] == 25
    assert {event["samples_per_second"] for event in live.events("metrics")} == {None}
    assert all(event["steps_per_second"] > 0 for event in live.events("metrics"))
    assert "context.total_steps" in live.events("user_warned")[0]["text"]
    told = dtrain("report", "last", "--runs", str(tmp_path / "runs")).stdout
    assert "samples/s" not in told
    assert "step 25 of 25" in told


def test_uneven_inputs_under_join_are_refused_before_the_first_step(tmp_path: Path) -> None:
    joined = OWN.replace("import torch\n", "import torch\nfrom torch.distributed.algorithms.join import Join\n")
    joined = joined.replace("    for step in range(context.step, 300):", "    with Join([model]):")
    (tmp_path / "own.py").write_text(joined)
    (tmp_path / "own.yaml").write_text(
        "name: own\nfunction: own.py:train\nstrategy: ddp\nresources: {workers: 2}\ntrain: {steps: 25}\n"
    )
    live = finished(str(tmp_path / "own.yaml"), runs=tmp_path / "runs", code=1)
    assert "torch's Join lets a rank stop before the others" in live.events("failure_occurred")[0]["message"]
    assert not live.events("training_started")
