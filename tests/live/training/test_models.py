"""Several models, functions that leave their loops, and randomness in data: killed runs equal undisturbed ones, nothing is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, start, stopped

TASK = str(PROGRAMS / "gan.yaml")


def recipe(folder: Path, target: str) -> str:
    """A recipe for another part of the program."""
    kind = "task" if target[0].isupper() else "function"
    lines = [
        f"{kind}: {PROGRAMS}/gan.py:{target}" if "task:" in line else line
        for line in Path(TASK).read_text().splitlines()
    ]
    path = folder / f"{target}.yaml"
    path.write_text("\n".join([*lines, ""]))
    return str(path)


def param(**values: object) -> tuple[str, ...]:
    return tuple(part for name, value in values.items() for part in ("--set", f"params.{name}={value}"))


def killed(*arguments: str, runs: Path) -> Live:
    """A run whose last worker is killed between two checkpoints."""
    with start(*arguments, *param(pause=0.05), runs=runs) as live:
        live.wait_step(8, rank=1)
        live.wait_event("checkpoint_saved")
        live.kill(1)
        live.finish()
    assert len(live.events("attempt_started")) == 2
    assert live.events("attempt_started")[1]["step"] >= 5
    return live


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "horovod"])
def test_two_models_and_their_scheduler_survive_a_kill(strategy: str, tmp_path: Path) -> None:
    options = (TASK, "--strategy", strategy)
    alone = finished(*options, runs=tmp_path / "alone")
    live = killed(*options, runs=tmp_path / "killed")
    assert live.weights() == alone.weights()
    assert live.losses() == alone.losses()
    live.assert_clean_audit(steps=20)
    assert "finished {'g': 'Sequential', 'd': 'Sequential'}" in live.output(0)
    assert "finished" not in live.output(1)


def test_the_models_move_to_another_strategy(tmp_path: Path) -> None:
    alone = finished(TASK, runs=tmp_path / "alone")
    live = stopped(TASK, *param(pause=0.02), runs=tmp_path / "moved", step=8)
    with start("last", "--set", "strategy=fsdp", *param(pause=0), runs=tmp_path / "moved", command="resume") as again:
        again._run = live.run
        again.finish()
    for step, loss in alone.losses().items():
        assert live.losses()[step] == pytest.approx(loss, rel=1e-4), f"step {step}"


def average(live: Live) -> str:
    return str(re.findall(r"^average .*$", live.output(0), flags=re.MULTILINE)[-1])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "horovod"])
def test_named_models_and_a_registered_object_survive_a_kill(strategy: str, tmp_path: Path) -> None:
    options = (recipe(tmp_path, "train"), "--strategy", strategy)
    alone = finished(*options, runs=tmp_path / "alone")
    live = killed(*options, runs=tmp_path / "killed")
    assert live.weights() == alone.weights()
    if strategy != "fsdp":  # of which each rank prints its own part
        assert average(live) == average(alone)
    assert live.events("metrics")[-1]["values"] == alone.events("metrics")[-1]["values"]
    assert live.events("metrics")[-1]["values"]["steps"] == 20


def test_an_object_that_was_registered_and_is_not_any_more_is_refused(tmp_path: Path) -> None:
    live = stopped(recipe(tmp_path, "train"), *param(pause=0.02), runs=tmp_path, step=8)
    with start("last", *param(name="other"), runs=tmp_path, command="resume") as again:
        again._run = live.run
        out = again.finish(code=3)
    assert re.search(r"the checkpoint step-\d+-attempt-\d+ has no state of 'other', which this run registers", out)


def test_two_calls_of_prepare_are_refused(tmp_path: Path) -> None:
    live = finished(recipe(tmp_path, "twice"), runs=tmp_path / "runs", code=1)
    message = live.events("failure_occurred")[0]["message"]
    assert message.startswith("gan.py: twice: context.prepare was called twice; give all models to one call, by name")


def test_a_function_that_breaks_out_of_its_loop_keeps_its_work(tmp_path: Path) -> None:
    live = finished(recipe(tmp_path, "train"), *param(break_at=13), runs=tmp_path)
    assert live.events("checkpoint_saved")[-1]["step"] == 13
    end = live.events("run_ended")[-1]
    assert (end["exit_code"], end["reason"]) == (0, "stopped by the function at step 13: the function left its loop")
    live.assert_clean_audit(steps=13)


@pytest.mark.parametrize("rank", [None, 1])
def test_a_function_stops_with_a_reason(rank: int | None, tmp_path: Path) -> None:
    who = {} if rank is None else {"stop_rank": rank}
    with start(recipe(tmp_path, "train"), *param(stop_at=13, pause=0.01, **who), runs=tmp_path) as live:
        out = live.finish()
    step = live.events("checkpoint_saved")[-1]["step"]
    assert step == 13 if rank is None else step in (13, 14)
    assert f"stopped by the function at step {step}: it learned enough" in out
    live.assert_clean_audit(steps=step)


def test_a_loop_with_data_of_its_own_is_counted_by_its_reports(tmp_path: Path) -> None:
    options = (recipe(tmp_path, "own_loop"),)
    alone = finished(*options, runs=tmp_path / "alone")
    assert [event["step"] for event in alone.events("checkpoint_saved")] == [5, 10, 15, 20]
    assert alone.events("training_started")[0]["total_steps"] == 20
    assert killed(*options, runs=tmp_path / "killed").weights() == alone.weights()
    left = finished(*options, *param(break_at=7), runs=tmp_path / "left")
    assert left.events("checkpoint_saved")[-1]["step"] == 7
    live = stopped(*options, *param(pause=0.05), runs=tmp_path / "asked", step=6)
    assert live.events("checkpoint_saved")[-1]["step"] == live.events("drain_agreed")[-1]["step"]


def test_a_rank_that_leaves_a_loop_of_its_own_alone_is_named(tmp_path: Path) -> None:
    options = (*param(break_at=7, break_rank=1), "--set", "recovery.hang_seconds=4")
    live = finished(recipe(tmp_path, "own_loop"), *options, runs=tmp_path / "runs", code=1)
    (failure,) = live.events("failure_occurred")
    assert (failure["kind"], failure["rank"]) == ("bug", 1)
    assert failure["message"].startswith("rank 1 left its loop after 7 steps while other ranks went on")


def test_a_function_sees_its_step_and_epoch_and_evaluates(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def train(context):\n"
        "    model, _ = context.prepare(lambda: torch.nn.Linear(1, 1), lambda m: torch.optim.SGD(m.parameters(), lr=0.1))\n"
        "    seen = []\n"
        "    for (batch,) in context.batches((torch.arange(16.0)[:, None],)):\n"
        "        seen.append((context.step, context.epoch))\n"
        "        context.report(loss=model(batch).square().mean())\n"
        "    held_out = (torch.arange(5.0)[:, None],)\n"
        "    mean = context.evaluate(lambda model, batch: {'x': batch[0].mean()}, held_out)\n"
        "    print('SEEN', context.total_steps, seen, mean)\n"
    )
    (tmp_path / "own.yaml").write_text(
        "function: own.py:train\nstrategy: ddp\nresources: {workers: 2}\ntrain: {epochs: 2, global_batch: 8}\n"
    )
    live = finished(str(tmp_path / "own.yaml"), runs=tmp_path / "runs")
    assert "SEEN 4 [(0, 0), (1, 0), (2, 1), (3, 1)] {'x': 2.0}" in live.output(0)
    assert live.events("evaluation")[-1]["values"] == {"x": 2.0}
    assert live.events("evaluation")[-1]["step"] == 4


def test_augmentation_is_the_same_after_a_kill(tmp_path: Path) -> None:
    options = (recipe(tmp_path, "Augmented"),)
    alone = finished(*options, runs=tmp_path / "alone")
    assert killed(*options, runs=tmp_path / "killed").weights() == alone.weights()
    single = finished(*options, "--workers", "1", "--set", "train.steps=1", runs=tmp_path / "single")
    assert single.losses()[1] != 0


def test_tied_weights_are_sharded_together(tmp_path: Path) -> None:
    options = (recipe(tmp_path, "TiedTask"), "--strategy", "fsdp", "--set", "strategy.wrap_parameters=100")
    plain = finished(options[0], runs=tmp_path / "plain")
    alone = finished(*options, runs=tmp_path / "alone")
    assert alone.losses()[20] == pytest.approx(plain.losses()[20], rel=1e-4)
    assert killed(*options, runs=tmp_path / "killed").weights() == alone.weights()
    assert "finished Parameter (64, 16)" in alone.output(0)
    assert "finished Parameter (64, 16)" in plain.output(0)


def test_parameters_that_take_no_part_name_the_option_that_allows_them(tmp_path: Path) -> None:
    live = finished(recipe(tmp_path, "Unused"), runs=tmp_path / "runs", code=1)
    assert "find_unused_parameters: true} in the recipe" in live.events("failure_occurred")[0]["message"]


def test_parameters_that_take_no_part_are_found_if_asked_to(tmp_path: Path) -> None:
    options = (recipe(tmp_path, "Unused"), "--set", "strategy.find_unused_parameters=true")
    alone = finished(*options, runs=tmp_path / "alone")
    assert killed(*options, runs=tmp_path / "killed").weights() == alone.weights()


def test_a_model_that_does_not_fit_its_checkpoint_is_told_by_tensors(tmp_path: Path) -> None:
    tiny = str(PROGRAMS / "tiny.yaml")
    live = stopped(tiny, *param(pause=0.02), runs=tmp_path, step=12)
    with start("last", *param(width=24), runs=tmp_path, command="resume") as again:
        again._run = live.run
        again.finish(code=3)
    log = live.output(0)
    assert "does not fit the model:\n  0.weight: (16, 8) in the checkpoint, (24, 8) in the model\n" in log
    assert len(log[log.index("dtrain: the checkpoint") :].splitlines()) <= 8


def test_a_nan_ends_the_run_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    source = (
        (PROGRAMS / "gan.py")
        .read_text()
        .replace(
            "return F.cross_entropy(model(batch), batch)",
            """
        from itertools import count
        self.calls = getattr(self, "calls", count())
        return F.cross_entropy(model(batch), batch) * (float("nan") if next(self.calls) == 25 else 1.0)""",
        )
    )
    (tmp_path / "gan.py").write_text(source)
    path = tmp_path / "nan.yaml"
    path.write_text(
        Path(TASK).read_text().replace("gan.py:Gan", "gan.py:TiedTask").replace("log_every: 1", "log_every: 7")
    )
    live = finished(str(path), *param(pause=0.02), runs=tmp_path / "runs", code=1)
    failure = live.events("failure_occurred")[0]
    assert failure["kind"] == "bug"
    assert re.match(
        r"the loss is nan at step 12 on rank [01], shard [0-3] \(samples .*\): lower the learning rate",
        failure["message"],
    )
    assert len(live.events("attempt_started")) == 1
    assert live.events("checkpoint_saved")[-1]["step"] == 10


def test_a_task_that_gives_its_samples_for_every_split_and_has_no_metrics_is_trained(tmp_path: Path) -> None:
    done = dtrain(
        "run", TASK, "--set", "task=gan.py:Unsplit", "--set", "train.evaluate_every=5", "--runs", str(tmp_path)
    )
    assert done.stdout.count("WARNING: gan.py: Unsplit.data('eval') is not evaluated on") == 1
    assert "step 20" in done.stdout
