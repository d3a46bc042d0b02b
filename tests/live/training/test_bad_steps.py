"""Losses and gradients that are not finite, or that jump: real runs on two workers stop, skip, or go back, as the recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, RECIPES, Live, dtrain, finished, start

from dtrain.report.audit import audit
from dtrain.strategies.horovod import launcher
from dtrain.worker.step_guard import MOST_IN_A_ROW

RECIPE = str(PROGRAMS / "bad_steps.yaml")
BAD = "params.nan=[101]"
"""Of step 12, on rank 1."""


HOROVOD = pytest.param(
    "horovod", marks=pytest.mark.skipif(not launcher.installed(), reason="Horovod is not built here")
)


def settings(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def run(runs: Path, *values: str, code: int = 0) -> Live:
    return finished(RECIPE, *settings(*values), runs=runs, code=code)


def bad_steps(live: Live) -> list[tuple[Any, ...]]:
    return [(event["step"], event["answer"], event["metric"], event["rank"]) for event in live.events("bad_step")]


def assert_left_out(live: Live, *steps: int) -> None:
    found = audit(live.run)
    assert found is not None
    assert found.clean, found.problems
    assert (found.left_out, len(found.reasons)) == (8 * len(steps), len(steps))
    assert all(f"step {step} was left out: " in told for step, told in zip(steps, found.reasons, strict=True))


@pytest.fixture(scope="module")
def skipped(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return run(tmp_path_factory.mktemp("skipped"), BAD, "train.on_nonfinite=skip")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(tmp_path: Path, strategy: str) -> None:
    live = run(tmp_path, BAD, f"strategy={strategy}", code=1)
    (failure,) = live.events("failure_occurred")
    origin = ", first in the batch itself" if strategy == "ddp" else ""
    said = f"the loss is nan at step 12 on rank 1, shard 1 (samples 100, 101, 102, 103{origin})"
    assert said in failure["message"]
    assert (failure["kind"], failure["rank"], failure["step"]) == ("bug", 1, 12)


@pytest.mark.parametrize("strategy", ["ddp", HOROVOD])
def test_a_gradient_that_is_not_finite_stops_the_run_on_the_rank_it_comes_from(tmp_path: Path, strategy: str) -> None:
    live = run(tmp_path, "params.overflow=[101]", f"strategy={strategy}", code=1)
    (failure,) = live.events("failure_occurred")
    assert failure["rank"] == 1
    assert "the gradient is nan at step 12, from rank 1, shard 1 (samples 100, 101, 102, 103, " in failure["message"]
    assert "first in the gradient of first.weight)" in failure["message"]
    assert live.events("checkpoint_saved")[-1]["step"] == 10


def test_a_gradient_that_is_not_finite_is_seen_when_parameters_are_sharded(tmp_path: Path) -> None:
    live = run(tmp_path, "params.overflow=[101]", "strategy=fsdp", code=1)
    (failure,) = live.events("failure_occurred")
    assert "the gradient is nan at step 12 (averaged over the ranks, which rank's cannot be told)" in failure["message"]


def test_a_skipped_step_is_left_out_on_every_rank_and_the_audit_says_why(skipped: Live) -> None:
    assert bad_steps(skipped) == [(12, "skip", "loss", 1)]
    assert 13 not in skipped.losses()
    assert_left_out(skipped, 12)
    assert (
        f"left out   step 12, with their samples: dtrain audit {skipped.run.id}"
        in dtrain("status", str(skipped.run.path)).stdout
    )
    printed = dtrain("audit", str(skipped.run.path)).stdout
    assert "step 12 was left out: the loss is nan on rank 1, shard 1 (samples 100, 101, 102, 103)" in printed


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", HOROVOD])
def test_a_gradient_that_is_not_finite_is_skipped_under_every_strategy(tmp_path: Path, strategy: str) -> None:
    live = run(tmp_path, "params.overflow=[101]", "train.on_nonfinite=skip", f"strategy={strategy}")
    known = strategy != "fsdp"
    assert bad_steps(live) == [(12, "skip", "gradient", 1 if known else None)]
    place = "from rank 1, shard 1 (samples 100, 101, 102, 103)" if known else "with finite losses"
    assert live.events("bad_step")[0]["why"] == f"the norm of the gradient is nan, {place}"
    assert_left_out(live, 12)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_going_back_gives_what_skipping_gives_and_uses_up_no_restart(
    tmp_path: Path, skipped: Live, strategy: str
) -> None:
    live = run(tmp_path, BAD, "train.on_nonfinite=rollback", "recovery.restarts=0", f"strategy={strategy}")
    assert bad_steps(live) == [(12, "rollback", "loss", 1)]
    assert [event["step"] for event in live.events("attempt_started")] == [0, 10]
    assert not live.events("failure_occurred")
    assert_left_out(live, 12)
    if strategy == "ddp":
        assert live.weights() == skipped.weights()


def test_a_kill_after_a_rollback_changes_nothing_and_the_step_stays_left_out(tmp_path: Path, skipped: Live) -> None:
    wanted = settings(BAD, "train.on_nonfinite=rollback", "params.pause=0.02", "checkpoint.keep=8")
    with start(RECIPE, *wanted, runs=tmp_path) as live:
        live.wait_step(14, attempt=2)  # before the checkpoint of step 15: step 12 is done once more
        live.kill(0, attempt=2)
        live.finish()
    assert len(live.events("attempt_started")) == 3
    assert bad_steps(live) == [(12, "rollback", "loss", 1)]
    assert_left_out(live, 12)
    assert live.weights() == skipped.weights()
    assert "are equal to the last bit" in dtrain("verify", str(live.run.path), "--step", "15").stdout


def test_a_kill_after_a_skipped_step_changes_nothing(tmp_path: Path, skipped: Live) -> None:
    with start(RECIPE, *settings(BAD, "train.on_nonfinite=skip", "params.pause=0.02"), runs=tmp_path) as live:
        live.wait_step(14)
        live.kill(1)
        live.finish()
    assert_left_out(live, 12)
    assert live.weights() == skipped.weights()


def test_exact_runs_skip_the_same_steps_and_have_the_same_bits_at_every_size(tmp_path: Path) -> None:
    wanted = (
        BAD,
        "params.outliers=[250]",
        "params.norm=false",
        "train.exact=true",
        "train.shards=4",
        "train.on_nonfinite=skip",
    )
    spike = ("train.spike={above: 20, window: 8, then: skip}",)
    one = run(tmp_path, *wanted, *spike, "resources.workers=1")
    two = run(tmp_path, *wanted, *spike, "resources.workers=2")
    sharded = run(tmp_path, *wanted, *spike, "resources.workers=2", "strategy=fsdp")
    for live in (one, two, sharded):
        assert [event["step"] for event in live.events("bad_step")] == [12, 31]
        assert_left_out(live, 12, 31)
    assert one.losses() == two.losses() == sharded.losses()
    assert one.weights() == two.weights()


def test_a_jump_of_the_loss_is_skipped_and_its_memory_survives_a_kill(tmp_path: Path) -> None:
    wanted = ("params.outliers=[250]", "train.spike={above: 20, window: 8, then: skip}")
    undisturbed = run(tmp_path, *wanted)
    assert bad_steps(undisturbed) == [(31, "skip", "loss", 0)]
    (event,) = undisturbed.events("bad_step")
    assert "times the median of the last 8 steps" in event["why"]
    assert "highest on rank 0, shard 0 (samples 248, 249, 250, 251)" in event["why"]
    assert_left_out(undisturbed, 31)
    with start(RECIPE, *settings(*wanted, "params.pause=0.02"), runs=tmp_path) as live:
        live.wait_step(28)  # after it, only 6 steps are left to the jump: fewer than the median is of
        live.kill(1)
        live.finish()
    assert bad_steps(live) == [(31, "skip", "loss", 0)]
    assert live.weights() == undisturbed.weights()


def test_a_jump_is_only_told_unless_the_recipe_wants_more(tmp_path: Path) -> None:
    plain = run(tmp_path, "params.outliers=[250]")
    assert not plain.events("bad_step")
    told = run(tmp_path, "params.outliers=[250]", "train.spike={above: 20, window: 8}")
    assert bad_steps(told)[0] == (31, "warn", "loss", 0)
    assert told.weights() == plain.weights()
    assert_left_out(told)


def test_a_run_whose_every_step_is_bad_ends(tmp_path: Path) -> None:
    many = f"params.nan={list(range(96, 96 + 8 * MOST_IN_A_ROW))}"
    live = run(tmp_path, many, "train.on_nonfinite=skip", code=1)
    assert (
        f"{MOST_IN_A_ROW} steps in a row were left out, the last of them step 21"
        in live.events("failure_occurred")[-1]["message"]
    )
    fewer = run(tmp_path, f"params.nan={list(range(96, 96 + 8 * (MOST_IN_A_ROW - 1)))}", "train.on_nonfinite=skip")
    assert_left_out(fewer, *range(12, 12 + MOST_IN_A_ROW - 1))


@pytest.mark.parametrize(
    ("recipe", "given", "why"),
    [
        ("digits_mirrored", "train.on_nonfinite=skip", "train.on_nonfinite: skip: 'mirrored' makes the optimizer step in the same call"),
        ("digits_mirrored", "train.spike={then: rollback}", "train.spike: 'mirrored' makes the optimizer step in the same call"),
        ("digits_function", "train.on_nonfinite=rollback", "a function makes its optimizer steps itself"),
    ],
)  # fmt: skip
def test_what_cannot_look_before_the_optimizer_steps_is_refused_by_name(
    tmp_path: Path, recipe: str, given: str, why: str
) -> None:
    done = dtrain("run", str(RECIPES / f"{recipe}.yaml"), "--runs", str(tmp_path), "--set", given, check=2)
    assert why in done.stderr
    assert "train.on_nonfinite: stop works everywhere" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_task_with_its_own_step_is_refused(tmp_path: Path) -> None:
    done = dtrain(
        "run", str(PROGRAMS / "gan.yaml"), "--runs", str(tmp_path), "--set", "train.on_nonfinite=skip", check=2
    )
    assert (
        "train_step makes its optimizer steps itself: train.on_nonfinite: skip needs a task with `loss`" in done.stderr
    )


def test_a_run_may_change_its_answer_when_it_is_resumed(tmp_path: Path) -> None:
    live = run(tmp_path, "params.nan=[201]", "train.until=20")
    more = (
        "--runs",
        str(tmp_path),
        *settings("train.until=30", "train.on_nonfinite=skip", "train.spike={above: 50, window: 4}"),
    )
    dtrain("resume", live.run.id, *more)
    assert bad_steps(live) == [(25, "skip", "loss", 0)]
    dtrain("resume", live.run.id, "--runs", str(tmp_path), *settings("train.until=40", "train.on_nonfinite=stop"))
    assert_left_out(live, 25)
