"""Projects of several files: a `src` layout, a recipe in a folder of its own, packages with relative imports."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import dtrain, finished

MODEL = "from torch import nn\ndef build():\n    return nn.Linear(4, 2)\n"
TASK = """
import torch
from {model} import build
class Task:
    def model(self):
        return build()
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)
    def data(self, split):
        return torch.zeros(64, 4).numpy(), torch.zeros(64).long().numpy()
    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
def train(context):
    build()
    print("trained by a function", flush=True)
"""
SCRIPT = "import subprocess, sys\nfrom mylab import model\nprint('found', model.__name__)\nsubprocess.run([sys.executable, '-c', 'import mylab.model; print(1 + 1)'], check=True)\n"
SETTINGS = "train: {steps: 2, global_batch: 8}\ntrack: []\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "mylab"
    package.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mylab'\nversion = '1'\n")
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(MODEL)
    (package / "task.py").write_text(TASK.format(model=".model"))
    (tmp_path / "conf").mkdir()
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def write(project: Path, text: str) -> str:
    path = project / "conf" / "recipe.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "named", ["task: mylab.task:Task\npythonpath: [../src]", "task: ../src/mylab/task.py:Task", "function: mylab.task:train\npythonpath: [../src]"]
)  # fmt: skip
def test_a_recipe_beside_a_src_layout_finds_its_code(named: str, project: Path) -> None:
    live = finished(write(project, f"{named}\n{SETTINGS}"), runs=project / "runs")
    assert live.run.job().strategy.name == "ddp"


def test_a_run_keeps_the_code_of_its_pythonpath(project: Path) -> None:
    runs = ("--runs", str(project / "runs"))
    dtrain("run", write(project, f"task: mylab.task:Task\npythonpath: [../src]\n{SETTINGS}"), *runs)
    (project / "src" / "mylab" / "model.py").write_text("raise RuntimeError('an edit')")
    resumed = dtrain("resume", "last", "--set", "train.steps=4", *runs).stdout
    assert "edited" in resumed
    assert ": done in" in resumed


def test_a_script_and_what_it_starts_find_modules_of_the_pythonpath(project: Path) -> None:
    out = dtrain(
        "run", write(project, "script: ../train.py\npythonpath: [../src]\n"), "--runs", str(project / "runs")
    ).stdout
    assert "found mylab.model" in out
    assert "rank 0 | 2" in out


def test_a_module_that_is_not_found_says_what_helps(project: Path) -> None:
    recipe = write(project, f"task: mylab.task:Task\n{SETTINGS}")
    said = dtrain("plan", recipe, check=2, cwd=project).stderr
    helps = f"'mylab' lies in {project}/src: write pythonpath: [../src] into the recipe, or install the project: pip install -e ."
    assert helps in said
    runs = ("--runs", str(project / "runs"))
    assert helps in dtrain("run", write(project, "script: ../train.py\n"), *runs, check=1, cwd=project).stdout
    write(project, f"task: mylab.task:Task\npythonpath: [../scr]\n{SETTINGS}")
    assert f"pythonpath: there is no folder {project}/scr" in dtrain("plan", recipe, check=2).stderr
    write(project, f"task: mylab.task:Tusk\npythonpath: [../src]\n{SETTINGS}")
    assert "Did you mean 'Task'?" in dtrain("plan", recipe, check=2).stderr


def test_a_relative_import_of_a_file_in_no_package_says_what_helps(project: Path) -> None:
    (project / "src" / "mylab" / "__init__.py").unlink()
    recipe = write(project, f"task: ../src/mylab/task.py:Task\n{SETTINGS}")
    out = dtrain("run", recipe, "--runs", str(project / "runs"), check=1).stdout
    assert "write task: mylab.task:Task and pythonpath: [../src] into the recipe" in out
    finished(write(project, f"task: mylab.task:Task\npythonpath: [../src]\n{SETTINGS}"), runs=project / "more")


def test_a_function_is_looked_up_before_the_start(project: Path) -> None:
    (project / "src" / "mylab" / "own.py").write_text("def none(): ...\ndef two(a, b): ...\ndef fine(c, d=1): ...\n")
    for name, words in (("none", "def none(context)"), ("two", "def two(context)"), ("fin", "Did you mean 'fine'?")):
        text = f"function: mylab.own:{name}\npythonpath: [../src]\n{SETTINGS}"
        assert words in dtrain("plan", write(project, text), check=2).stderr
    dtrain("plan", write(project, f"function: mylab.own:fine\npythonpath: [../src]\n{SETTINGS}"))
