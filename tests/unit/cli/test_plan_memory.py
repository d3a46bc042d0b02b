"""`dtrain plan` tells the memory of a rank before anything is started."""

from __future__ import annotations

from pathlib import Path

from live import PROGRAMS, dtrain

LAYERS, LAYER_BYTES = 32, 4 << 20


def recipe(folder: Path, strategy: str) -> str:
    """The model of 128 MB, in layers that are gathered one at a time."""
    path = folder / "wide.yaml"
    path.write_text(
        f"task: {PROGRAMS}/wide.py:Wide\nparams: {{folder: {folder}}}\nstrategy: {strategy}\nresources: {{workers: 4}}\n"
        "train: {steps: 1, global_batch: 4}\n"
    )
    return str(path)


def test_a_rank_of_a_sharded_model_needs_its_part_and_what_is_gathered(tmp_path: Path) -> None:
    path = recipe(tmp_path, "{name: fsdp, wrap: [Linear], precision: bf16}")
    shown = dtrain("plan", path, "--set", "resources.device_memory=50MB").stdout
    assert "parameters 33.6 MB, gradients 33.6 MB, optimizer 0 B, 4 gathered blocks of 2.1 MB: 75.5 MB" in shown
    assert "warning: a device has 50 MB (resources.device_memory), which is less: take 7 workers" in shown


def test_a_rank_of_ddp_needs_all_and_an_error_of_the_task_is_told(tmp_path: Path) -> None:
    path = recipe(tmp_path, "ddp")
    shown = dtrain("plan", path, "--set", "resources.device_memory=1GB").stdout
    assert "parameters 134 MB, gradients 134 MB, optimizer 0 B: 268 MB" in shown
    assert "warning" not in shown
    assert "not known (TypeError" in dtrain("plan", path, "--memory", "--set", "params.folder=[]").stdout
    wrong = dtrain("plan", path, "--set", "resources.device_memory=much", check=2)
    assert "'much' is no amount of memory" in wrong.stderr
