"""A run that dtrain 0.1.0 made goes on under this one: what it pickled is read, and nothing is pickled any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from live import ROOT, dtrain

import dtrain as library
from dtrain.record.folder import RunDir

GOLDEN = ROOT / "tests" / "golden" / "run-0.1.0"
"""A run of `gold.py` up to its 4th step."""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "gold-20261128-174138-9a3f")
    shutil.copytree(GOLDEN, run.path)
    job = run.job_file.read_text().replace("FOLDER", str(run.path))
    run.job_file.write_text(job)
    return run


def test_its_weights_are_read(run: RunDir) -> None:
    weights = library.load(run.path)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {"a.weight": (2, 2), "a.bias": (2,)}
    assert torch.isfinite(weights["a.weight"]).all()


def test_it_goes_on_with_everything_that_it_had(run: RunDir) -> None:
    dtrain("resume", str(run.path), "--set", "train.steps=6")
    log = run.rank_log(0).read_text()
    assert "step 4 5\n" in log, "what it registered counts on"
    assert "step 5 6\n" in log
    (new,) = run.checkpoints.glob("step-00000006-*")
    assert {path.suffix for path in new.iterdir()} == {".json", ".safetensors"}
    values = json.loads((new / "values.json").read_text())["values"]
    assert values["optimizer.param_groups.0.betas"] == {"tuple": [0.9, 0.999]}
    dtrain("resume", str(run.path), "--set", "train.steps=7")
    assert "step 6 7" in run.rank_log(0).read_text()
