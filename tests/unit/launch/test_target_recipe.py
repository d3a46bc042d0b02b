"""The recipe that stands for a script, a task or a function."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dtrain.common.errors import UsageError
from dtrain.launch import recipe, target_recipe

TASK = """
import torch
class Net:
    def model(self): ...
    def optimizer(self, model): ...
    def data(self, split): ...
    def loss(self, model, batch): ...
def train(context): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "my train.py").write_text("print(1)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("train.py", True), ("a/train.py", True), ("task.py:Net", True), ("lab.task:Net", True), ("run.sh", True),
        ("recipe.yaml", False), ("recipe", False), ("a:b/c.yaml", False), ("task.py:Net.x", False), ("conf/task:Net", False),
    ],
)  # fmt: skip
def test_a_target_is_told_from_a_recipe(*, path: str, expected: bool) -> None:
    assert target_recipe.is_target(Path(path)) is expected


@pytest.mark.parametrize(
    ("path", "kind", "target"),
    [("my train.py", "script", "my train.py"), ("task.py:Net", "task", "task.py:Net"), ("task.py:train", "function", "task.py:train")],
)  # fmt: skip
def test_a_file_says_what_a_target_is(path: str, kind: str, target: str, folder: Path) -> None:
    job = recipe.load(Path(path))
    assert (job.kind, job.target, job.folder) == (kind, target, str(folder))
    assert job.train.epochs == (None if kind == "script" else 1)
    assert job.resources.workers == 1


def test_the_recipe_that_is_kept_makes_the_same_job(folder: Path) -> None:
    given: list[recipe.Override] = [(("train", "steps"), 7, "--set"), (("args",), ["--lr", "0.1"], "--")]
    task = recipe.load(Path("task.py:Net"), given[:1])
    assert (task.train.steps, task.train.epochs) == (7, None)
    (folder / "kept.yaml").write_text(target_recipe.text_of(Path("task.py:Net"), task))
    assert recipe.load(folder / "kept.yaml") == task
    script = recipe.load(Path("my train.py"), given[1:])
    assert script.args == ("--lr", "0.1")
    (folder / "kept.yaml").write_text(target_recipe.text_of(Path("my train.py"), script))
    assert recipe.load(folder / "kept.yaml") == script
    assert yaml.safe_load((folder / "kept.yaml").read_text())["name"] == "my-train"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gone.py", "there is no file gone.py"),
        ("task.py:Nit", "task.py:Nit: task: task.py has no class 'Nit'. Did you mean 'Net'?"),
        ("gone.py:Net", "gone.py:Net: task: there is no file"),
    ],
)
def test_what_is_not_there_is_said(path: str, words: str, folder: Path) -> None:
    with pytest.raises(UsageError) as raised:
        recipe.load(Path(path))
    assert str(raised.value).startswith(words)


def test_a_task_takes_no_arguments(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"-- --lr: args: a task takes `params`, not `args`"):
        recipe.load(Path("task.py:Net"), [(("args",), ["--lr"], "-- --lr")])
