"""What is wrong with a task's class is found by reading its file; nothing is said where that is not enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtrain.job.task_class import problems

METHODS = "def model(self): pass\n    def optimizer(self, model): pass\n    def data(self, split): pass\n    def loss(self, model, batch): pass"


def found(folder: Path, source: str, params: dict[str, Any], target: str = "user.py:Task") -> dict[str, str]:
    (folder / "user.py").write_text(source)
    return {".".join(path): text for path, text in problems(target, [str(folder)], params)}


@pytest.mark.parametrize(
    ("init", "params", "expected"),
    [
        ("", {}, {}),
        ("", {"width": 3}, {"params.width": "user.py: Task does not take 'width'. It takes none."}),
        ("def __init__(self, width=3): pass", {"width": 4}, {}),
        (
            "def __init__(self, width=3): pass",
            {"widht": 4},
            {"params.widht": "user.py: Task does not take 'widht'. Did you mean 'width'?"},
        ),
        (
            "def __init__(self, width, *, depth, heads=2): pass",
            {"depth": 1},
            {"params": "user.py: Task needs 'width', which has no default: give it under params"},
        ),
        ("def __init__(self, **anything): pass", {"width": 4}, {}),
    ],
)
def test_parameters_are_those_of_init(
    init: str, params: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    assert found(tmp_path, f"class Task:\n    {init or 'pass'}\n    {METHODS}\n", params) == expected


def test_a_missing_method_is_named(tmp_path: Path) -> None:
    source = f"class Task:\n    {METHODS}\n".replace("def model(", "def modell(")
    assert found(tmp_path, source, {})["task"].startswith(
        "user.py: Task has no method model or models: a task has model"
    )


def test_bases_in_the_same_file_count_and_others_end_the_search(tmp_path: Path) -> None:
    base = f"class Base:\n    def __init__(self, width=3): pass\n    {METHODS}\n"
    assert found(tmp_path, f"{base}class Task(Base):\n    depth = 2\n", {"width": 1}) == {}
    assert "params.depth" in found(tmp_path, f"{base}class Task(Base):\n    depth = 2\n", {"depth": 1})
    assert found(tmp_path, "from other import Base\nclass Task(Base):\n    pass\n", {"depth": 1}) == {}
    assert found(tmp_path, "@decorated\nclass Task:\n    pass\n", {"depth": 1}) == {}
    assert found(tmp_path, "def Task(): pass\n", {"depth": 1}) == {}
