"""The user's files are told from dtrain's and from libraries by where those are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

import dtrain
from dtrain.common import source_files
from dtrain.launch import registry


@pytest.mark.parametrize(
    "folder", ["dtrain", "home/dtrain/dtrain", "lib/python3.11", "common", "site-packages-of-mine"]
)
def test_a_folders_name_makes_no_file_ours(folder: str, tmp_path: Path) -> None:
    assert source_files.is_users(str(tmp_path / folder / "task.py"))


def test_the_package_and_its_plugins_are_ours() -> None:
    plugin = sys.modules[registry.plugin_class("strategy", "ddp").__module__]
    for module in (dtrain, source_files, plugin):
        assert source_files.is_ours(str(module.__file__))
        assert not source_files.is_users(str(module.__file__))


@pytest.mark.parametrize("filename", [json.__file__, pydantic.__file__, "<string>", "<frozen importlib._bootstrap>"])
def test_libraries_and_generated_code_are_nobodys_own(filename: str) -> None:
    assert source_files.is_library(filename)
    assert not source_files.is_ours(filename)


def test_an_error_names_the_users_line_below_a_folder_called_dtrain(tmp_path: Path) -> None:
    """As in a clone of this repository, or of a project of that name."""
    code = tmp_path / "dtrain" / "model.py"
    code.parent.mkdir()
    code.write_text("def forward():\n    raise ValueError('no')\n")
    program = (
        "import runpy, sys\n"
        "from types import SimpleNamespace\n"
        "from dtrain.exporters import torch_export\n"
        "try:\n    runpy.run_path(sys.argv[1])['forward']()\n"
        "except ValueError as error:\n    print(torch_export.refused(error, SimpleNamespace(model=None)))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", program, str(code)], capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    assert f"in {code}, line 2" in shown
