"""What docs show in Python works as it stands there."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live import PROGRAMS, RECIPES, ROOT

import dtrain


def example(document: str, number: int) -> str:
    """The Python in a document of docs/, block by block."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    return str(found[number])


def shown(program: str, folder: Path) -> str:
    """What a script with this text prints."""
    (folder / "script.py").write_text(program)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_a_recipe_is_run_and_its_weights_are_read(tmp_path: Path) -> None:
    shutil.copyfile(RECIPES / "digits_ddp.yaml", tmp_path / "recipe.yaml")
    shutil.copyfile(RECIPES / "digits_torch.py", tmp_path / "digits_torch.py")
    out = shown(example("python.md", 0), tmp_path)
    assert re.search(r"^done \(500, 0\.9\d+\) 0\.\d+$", out, re.MULTILINE), out
    read = example("after-training.md", 0).replace("Net()", "Digits().model()")
    read = read.replace("s3://bucket/runs/digits_ddp-20261122-084904-24a7", "last").replace("step=200", "step=450")
    equal = "print(sorted(weights) == sorted(name for name, _ in model.named_parameters()))\n"
    assert shown("from digits_torch import Digits\n" + read + equal, tmp_path) == "True\n"


def test_a_recipe_in_python_is_submitted_and_waited_for(tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "blobs.py", tmp_path)
    shown(example("python.md", 1), tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    assert dtrain.attach(run).state == "done"


@pytest.mark.parametrize("document", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_every_example_is_python(document: str) -> None:
    for text in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL):
        assert ast.parse(text, document).body
