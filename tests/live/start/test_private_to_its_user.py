"""What a run keeps is its user's own whatever the umask is, what it listens on is the loopback, and a checkpoint that somebody forged runs
nothing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, dtrain, finished, process_tree, start
from processes import listening

from dtrain.checkpoint.names import folder_of
from dtrain.checkpoint.store import MANIFEST, CheckpointOrigin, CheckpointShard, manifest_of
from dtrain.common.files import hashed
from dtrain.record.folder import all_runs

RECIPE = str(PROGRAMS / "tiny.yaml")
FEW = ("--workers", "1", "--set", "train.steps=4", "--set", "checkpoint.every_steps=2")
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
POISON = b"cos\nsystem\n(S'touch %s'\ntR."
"""A pickle that runs a program when it is read."""


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_nobody_else_enters_a_run_whatever_the_umask_is(umask: int, tmp_path: Path) -> None:
    runs, there = tmp_path / "runs", tmp_path / "there"
    command = [*DTRAIN, "run", RECIPE, *FEW, "--set", f"storage.url=file://{there}", "--runs", str(runs)]
    subprocess.run(command, cwd="/", check=True, capture_output=True, umask=umask, timeout=200)
    (run,) = all_runs(runs)
    for folder in (run.path, there / run.id):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, "whoever cannot enter it reads nothing in it"
    assert stat.S_IMODE(run.job_file.stat().st_mode) == 0o600


def test_all_that_listens_is_on_the_loopback(tmp_path: Path) -> None:
    two = ("--workers", "2", "--set", "resources.nodes=2", "--set", "params.pause=0.05")
    with start(RECIPE, *two, runs=tmp_path) as live:
        live.wait_step(5)
        assert listening(process_tree(live.process.pid)) <= LOOPBACK
        live.finish()


@pytest.mark.parametrize("name", ["__0_0.objects", "state.pkl", "__0_0.distcp", ".metadata"])
def test_a_poisoned_checkpoint_runs_nothing(name: str, tmp_path: Path) -> None:
    """Its manifest is right, as whoever can write there can make it."""
    live = finished(RECIPE, *FEW, runs=tmp_path / "runs")
    folder, canary = folder_of(live.run.checkpoints, 4), tmp_path / "canary"
    (folder / name).write_bytes(POISON % str(canary).encode())
    written = json.loads((folder / MANIFEST).read_text())
    files = {path.name: hashed(path) for path in folder.iterdir() if path.name != MANIFEST}
    origin = CheckpointOrigin(written["strategy"], written["workers"], written["run"])
    made = manifest_of(written["attempt"], 4, [CheckpointShard(files, written["weights"])], origin)
    (folder / MANIFEST).write_text(made.text)
    for command in (
        ["resume", str(live.run.path), "--set", "train.steps=6"],
        ["weights", str(live.run.path), "--to", str(tmp_path / "w.safetensors")],
    ):
        dtrain(*command, check=None)
        assert not canary.exists()


def test_a_runs_folder_that_another_user_prepared_is_refused(tmp_path: Path) -> None:
    """Of residents and of nodes without the run folder: both are below a folder that all users share."""
    squatted = tmp_path / f"dtrain-{os.getuid()}"
    squatted.mkdir()
    squatted.chmod(0o777)
    done = dtrain(
        "run", RECIPE, *FEW, "--warm", "10s", "--runs", str(tmp_path / "runs"), XDG_RUNTIME_DIR=str(tmp_path), TMPDIR=str(tmp_path)
    )  # fmt: skip
    assert "not a folder of this user alone" in done.stderr
    shutil.rmtree(squatted)
