"""Every recipe of docs/from-other-tools.md is planned, and what needs nothing but PyTorch is run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import documents
import pytest
from live import ROOT, dtrain

PAGE = "docs/from-other-tools.md"
LAUNCHERS = {
    "torchrun": "RANK",
    "accelerate": "RANK",
    "lightning": "RANK",
    "ray_train": "RANK",
    "mirrored": None,
    "horovodrun": "HOROVOD_RANK",
}
"""Recipe → a variable that its workers need."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents.files(PAGE, tmp_path)
    return tmp_path


def test_every_section_has_a_recipe_that_is_planned(folder: Path) -> None:
    assert {path.stem for path in folder.glob("*.yaml")} == LAUNCHERS.keys()
    assert len(re.findall("^## ", (ROOT / PAGE).read_text(), re.MULTILINE)) == len(LAUNCHERS)
    for name, variable in LAUNCHERS.items():
        plan = dtrain("plan", f"{name}.yaml", cwd=folder).stdout
        assert not variable or f"    {variable}=1" in plan, f"{name}\n{plan}"
        assert json.loads(dtrain("plan", f"{name}.yaml", "--json", cwd=folder).stdout)


@pytest.mark.parametrize("name", ["torchrun", "ray_train"])
def test_a_program_of_the_page_trains(name: str, folder: Path) -> None:
    small = ("--cluster", "local", "--nodes", "1", "--workers", "2")
    assert ": done in" in dtrain("run", f"{name}.yaml", *small, cwd=folder).stdout


@pytest.mark.extras
@pytest.mark.parametrize("name", ["accelerate", "lightning"])
def test_a_program_of_a_library_on_pytorch_trains(name: str, folder: Path) -> None:
    assert ": done in" in dtrain("run", f"{name}.yaml", cwd=folder).stdout


@pytest.mark.tensorflow
def test_the_keras_task_of_the_page_trains(folder: Path) -> None:
    assert ": done in" in dtrain("run", "mirrored.yaml", cwd=folder).stdout


@pytest.mark.horovod
def test_the_horovod_program_of_the_page_trains(folder: Path) -> None:
    assert ": done in" in dtrain("run", "horovodrun.yaml", cwd=folder).stdout
