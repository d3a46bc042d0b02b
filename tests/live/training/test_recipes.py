"""Every recipe that we ship trains on its real data to what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import RECIPES, dtrain, finished, killed, start

DIGITS = sorted(path.stem for path in RECIPES.glob("digits_*.yaml") if path.stem != "digits_function")


@pytest.mark.parametrize("name", DIGITS)
def test_digits_reach_97_percent_on_held_out_ones(name: str, tmp_path: Path) -> None:
    live = finished(str(RECIPES / f"{name}.yaml"), runs=tmp_path)
    assert live.events("evaluation")[-1]["values"]["accuracy"] >= 0.97
    live.assert_clean_audit(steps=live.events("training_started")[-1]["total_steps"])


def test_a_loop_of_ones_own_learns(tmp_path: Path) -> None:
    live = finished(str(RECIPES / "digits_function.yaml"), runs=tmp_path)
    losses = live.losses()
    assert losses[max(losses)] < losses[min(losses)] / 3


@pytest.mark.parametrize("name", ["stdlib_gpt_ddp", "stdlib_gpt_fsdp"])
def test_the_gpt_learns_and_prints_a_sample(name: str, tmp_path: Path) -> None:
    # bf16 takes seven times as long on processors without instructions for it
    live = finished(str(RECIPES / f"{name}.yaml"), "--set", "train.steps=60", runs=tmp_path)
    losses = live.losses()
    assert losses[max(losses)] < losses[min(losses)] - 0.3
    assert "def " in live.output(0)


def test_the_large_gpt_fits_the_workers_it_names_and_no_fewer(tmp_path: Path) -> None:
    recipe = str(RECIPES / "stdlib_gpt_large.yaml")
    shown = dtrain("plan", recipe).stdout
    assert "memory of a rank: parameters 15" in shown
    assert "warning: a device has" not in shown
    assert "which is less: take 2 workers" in dtrain("plan", recipe, "--workers", "1").stdout
    small = ("params.width=64", "params.heads=4", "params.blocks=2", "params.context=64", "train.steps=20")
    live = finished(recipe, *(part for one in small for part in ("--set", one)), runs=tmp_path)
    losses = live.losses()
    assert losses[max(losses)] < losses[min(losses)] - 0.2


@pytest.mark.parametrize("name", ["script", "horovod_script"])
def test_scripts_run_as_they_are(name: str, tmp_path: Path) -> None:
    live = finished(str(RECIPES / f"{name}.yaml"), runs=tmp_path)
    assert "learned [1.0, -2.0, 3.0, -4.0]" in live.output(0)


def test_pictures_in_a_folder_are_learned_and_a_kill_leaves_no_trace(tmp_path: Path) -> None:
    options = (
        str(RECIPES / "pictures.yaml"), "--set", f"params.folder={tmp_path / 'pictures'}", "--set", "params.count=1000",
        "--set", "train.steps=80", "--set", "checkpoint.every_steps=10",
    )  # fmt: skip
    alone = finished(*options, runs=tmp_path / "alone")
    assert alone.events("evaluation")[-1]["values"]["accuracy"] > 0.5
    live = killed(*options, runs=tmp_path / "killed", step=20, rank=1)
    assert live.weights() == alone.weights()
    live.assert_clean_audit(steps=80)


def test_a_model_of_hugging_face_learns_as_a_task(tmp_path: Path) -> None:
    live = finished(str(RECIPES / "docstrings_task.yaml"), "--set", "train.steps=60", runs=tmp_path)
    losses = live.losses()
    assert losses[max(losses)] < losses[min(losses)] - 0.2


def test_the_same_model_learns_with_a_trainer(tmp_path: Path) -> None:
    options = ("--set", f"args=[{tmp_path / 'state'}, 60]")
    live = finished(str(RECIPES / "docstrings_trainer.yaml"), *options, runs=tmp_path / "runs")
    assert "trained 60 steps" in live.output(0)
    assert (tmp_path / "state" / "checkpoint-60").is_dir()


def test_a_lightning_program_learns(tmp_path: Path) -> None:
    options = ("--set", f"args=[{tmp_path / 'state'}, 5]")
    live = finished(str(RECIPES / "lightning_script.yaml"), *options, runs=tmp_path / "runs")
    accuracy = float(live.output(0).split("accuracy ")[1].split()[0])
    assert accuracy > 0.85


def test_a_compiled_gpt_learns(tmp_path: Path) -> None:
    small = ("--set", "train.steps=40", "--set", "params.blocks=1", "--set", "params.width=48")
    live = finished(str(RECIPES / "stdlib_gpt_compiled.yaml"), *small, runs=tmp_path)
    losses = live.losses()
    assert losses[max(losses)] < losses[min(losses)] - 0.3


def test_a_killed_mirrored_process_leaves_no_trace_even_while_saving(tmp_path: Path) -> None:
    recipe = (str(RECIPES / "digits_mirrored.yaml"), "--set", "train.steps=60", "--set", "checkpoint.every_steps=1")
    alone = finished(*recipe, runs=tmp_path / "alone")
    with start(*recipe, runs=tmp_path / "killed") as live:
        for attempt in (1, 2, 3):
            live.wait_step(15 * attempt, attempt=attempt)
            live.kill(0, attempt)
        live.finish()
    assert live.weights() == alone.weights()
    live.assert_clean_audit(steps=60)


def test_the_task_and_the_recipe_of_the_readme_train(tmp_path: Path) -> None:
    text = (RECIPES.parent / "README.md").read_text()
    for name, language in (("blobs.py", "python"), ("recipe.yaml", "yaml")):
        (tmp_path / name).write_text(text.split(f"```{language}\n")[1].split("```")[0])
    live = finished(str(tmp_path / "recipe.yaml"), runs=tmp_path / "runs")
    live.assert_clean_audit(300)
