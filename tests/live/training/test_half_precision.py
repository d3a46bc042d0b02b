"""`strategy.precision: fp16`: the loss is scaled, steps that overflow are left out, and a kill changes no bit."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, Live, dtrain, finished, start

from dtrain.checkpoint.difference import first_difference
from dtrain.report.audit import audit

RECIPE = str(PROGRAMS / "bad_steps.yaml")
HALF = ("strategy.precision=fp16", "params.norm=false")
LOUD = "params.outliers=[101]"
"""A sample of step 12, whose gradient overflows with a scale with which all others do not."""


def settings(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def rescaled(live: Live) -> list[int]:
    found = [event for event in live.events("bad_step") if event["answer"] == "rescale"]
    assert found == live.events("bad_step")
    assert all("overflowed in fp16" in event["why"] for event in found)
    return [event["step"] for event in found]


def assert_left_out(live: Live) -> None:
    found = audit(live.run)
    assert found is not None
    assert found.clean, found.problems
    steps = rescaled(live)
    assert found.left_out == 8 * len(steps)
    assert all(f"step {step} was left out: the gradient" in why for step, why in zip(steps, found.reasons, strict=True))


STRATEGIES = {
    "ddp": ("strategy=ddp",),
    "fsdp": ("strategy=fsdp",),
    "hsdp": ("strategy=hsdp", "strategy.replicas=2", "resources.workers=4"),
}


@pytest.fixture(scope="module", params=STRATEGIES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Live]:
    """An undisturbed run of each strategy."""
    more = settings(*STRATEGIES[request.param], *HALF, LOUD)
    return request.param, finished(RECIPE, *more, runs=tmp_path_factory.mktemp("whole"))


def test_a_step_that_overflows_is_left_out_and_is_no_failure(whole: tuple[str, Live]) -> None:
    _, live = whole
    steps = rescaled(live)
    assert 12 in steps
    assert len(steps) < 20
    assert 13 not in live.losses(), "no number of a step that was left out"
    assert not live.events("failure_occurred")
    assert_left_out(live)
    shown = dtrain("status", str(live.run.path)).stdout
    assert "left out   steps " in shown


def test_a_kill_after_the_scale_has_changed_changes_nothing(whole: tuple[str, Live], tmp_path: Path) -> None:
    strategy, undisturbed = whole
    with start(RECIPE, *settings(*STRATEGIES[strategy], *HALF, LOUD, "params.pause=0.02"), runs=tmp_path) as live:
        live.wait_step(18)
        live.kill(1)
        live.finish()
    assert len(live.events("attempt_started")) == 2
    assert set(rescaled(live)) == set(rescaled(undisturbed))
    assert_left_out(live)
    assert first_difference(live.checkpoint(40), undisturbed.checkpoint(40)) is None


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_gradient_that_no_scale_helps_stops_the_run(strategy: str, tmp_path: Path) -> None:
    live = finished(
        RECIPE, *settings(f"strategy={strategy}", *HALF, f"params.overflow={list(range(480))}"), runs=tmp_path, code=1
    )
    assert rescaled(live) == list(range(16)), "from 65536 down to 2"
    assert "at step 16" in live.events("failure_occurred")[0]["message"]


def test_a_loss_that_is_not_finite_is_the_matter_of_on_nonfinite(tmp_path: Path) -> None:
    live = finished(RECIPE, *settings(*HALF, "params.nan=[101]"), runs=tmp_path, code=1)
    assert "the loss is nan at step 12 on rank 1" in live.events("failure_occurred")[0]["message"]
    live = finished(RECIPE, *settings(*HALF, "params.nan=[101]", "train.on_nonfinite=skip"), runs=tmp_path)
    assert [(event["step"], event["metric"]) for event in live.events("bad_step") if event["answer"] == "skip"] == [
        (12, "loss")
    ]


def test_a_run_may_turn_to_fp16_and_back(tmp_path: Path) -> None:
    live = finished(RECIPE, *settings("train.until=10"), runs=tmp_path)
    dtrain("resume", live.run.id, "--runs", str(tmp_path), *settings("strategy.precision=fp16", "train.until=20"))
    dtrain("resume", live.run.id, "--runs", str(tmp_path), *settings("strategy.precision=fp32", "train.until=null"))
    assert live.checkpoint(40)


def by_hand(clip: float, left_out: list[int]) -> list[float]:
    """The losses of a loop with torch's own scaler, without these steps."""
    import torch

    masked = runpy.run_path(str(PROGRAMS / "masked.py"))
    task = masked["Masked"]()
    torch.manual_seed(0)
    model = task.model()
    optimizer, scaler = task.optimizer(model), torch.amp.GradScaler("cpu")
    inputs, targets = (torch.as_tensor(part) for part in task.data("train"))
    losses = []
    for step in range(8):
        rows = (torch.arange(24) + 24 * step) % len(inputs)
        with torch.autocast("cpu", dtype=torch.float16):
            loss, _ = task.mean(model, (inputs[rows], targets[rows]))
        losses.append(loss.item())
        if step in left_out:
            continue
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize(
    "more",
    [
        ("--workers", "1"),
        ("--workers", "2", "--set", "train.accumulate=3"),
        ("--workers", "2", "--set", "train.micro_batch=5"),
        ("--workers", "2", "--set", "train.exact=true", "--set", "train.shards=4"),
        ("--workers", "2", "--set", "strategy=fsdp"),
    ],
    ids=["one pass", "accumulated", "micro-batches", "exact", "sharded"],
)
def test_a_weighted_loss_trains_as_with_a_scaler_by_hand(more: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"task: {PROGRAMS / 'masked.py'}:Masked\nstrategy: ddp\ntrack: []\n"
        "train: {steps: 8, global_batch: 24, clip_norm: 0.3, shuffle: false, log_every: 1}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), *more, *settings("strategy.precision=fp16"), runs=tmp_path / "runs")
    losses = live.losses()
    wanted = by_hand(0.3, rescaled(live))
    assert not live.events("user_warned")
    assert losses == pytest.approx({step: wanted[step - 1] for step in losses}, rel=5e-3)
    assert (len(losses), rescaled(live)) == (7, [0]), "the weights of the first step were not known before it"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (("function=tiny.py:train", "task=null"), "a function makes its optimizer steps itself"),
        (("task=gan.py:Gan",), "train_step makes its optimizer steps itself"),
    ],
)
def test_steps_of_ones_own_are_refused(values: tuple[str, ...], why: str, tmp_path: Path) -> None:
    said: Any = dtrain("plan", RECIPE, *settings(*values, "strategy.precision=fp16"), check=2)
    assert f"{why}: strategy.precision: fp16 needs a task with `loss`" in said.stderr


def test_a_function_computes_in_bf16_what_its_model_is_called_with(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def train(context):\n"
        "    build = lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))\n"
        "    model, optimizer = context.prepare(build, lambda model: torch.optim.SGD(model.parameters(), lr=0.1))\n"
        "    for batch in context.batches(torch.randn(64, 8, generator=torch.Generator().manual_seed(1))):\n"
        "        output = model(batch)\n"
        "        print('computed in', output.dtype, torch.is_autocast_enabled('cpu'))\n"
        "        loss = output.float().square().mean()\n"
        "        optimizer.zero_grad()\n"
        "        loss.backward()\n"
        "        optimizer.step()\n"
        "        context.report(loss=loss)\n"
    )
    (tmp_path / "r.yaml").write_text(
        "function: own.py:train\nstrategy: {name: ddp, precision: bf16}\ntrain: {steps: 3, global_batch: 8}\n"
    )
    for workers in ("1", "2"):
        live = finished(str(tmp_path / "r.yaml"), "--workers", workers, runs=tmp_path / workers)
        text = live.run.rank_log(0).read_text()
        assert text.count("computed in torch.bfloat16 False") == 3, text
