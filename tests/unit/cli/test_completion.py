"""What Tab completes, asked as bash asks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, finished


def completed(*words: str, cwd: Path | str = "/", **environment: str) -> list[str]:
    asked = {
        "_DTRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("dtrain", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        DTRAIN, env=os.environ | asked | environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def test_commands() -> None:
    assert set(completed("re")) == {"report", "reproduce", "resize", "resume"}


def test_keys_of_a_recipe_and_their_values() -> None:
    assert completed("run", "r.yaml", "--set", "train.ev") == ["train.evaluate_every=", "train.evaluate_steps="]
    assert completed("run", "r.yaml", "--set", "checkpoint.keep_best.mode=") == [
        "checkpoint.keep_best.mode=min", "checkpoint.keep_best.mode=max", "checkpoint.keep_best.mode=",
    ]  # fmt: skip


def test_plugins() -> None:
    assert completed("run", "r.yaml", "--strategy", "fs") == ["fsdp"]
    assert completed("run", "r.yaml", "--cluster", "s") == ["slurm"]


@pytest.mark.live
def test_runs(tmp_path: Path) -> None:
    live = finished(str(PROGRAMS / "tiny.yaml"), "--workers", "1", "--set", "train.steps=2", runs=tmp_path)
    assert completed("status", "t", DTRAIN_RUNS=str(tmp_path)) == [live.run.id]
    assert completed("status", "", DTRAIN_RUNS=str(tmp_path)) == ["last", live.run.id]
    assert completed("status", "", cwd=tmp_path, DTRAIN_RUNS=str(tmp_path / "none")) == ["last"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_one(shell: str, tmp_path: Path) -> None:
    done = subprocess.run([*DTRAIN, "completion", shell], capture_output=True, text=True, check=True)
    assert "_DTRAIN_COMPLETE" in done.stdout
    if shutil.which(shell):
        (tmp_path / "script").write_text(done.stdout)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
