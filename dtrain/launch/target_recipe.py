"""The recipe of a script, task or function that is named where a recipe is expected (`dtrain run train.py`)."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dtrain.common.errors import UsageError
from dtrain.job import entrypoint
from dtrain.job.job import Job
from dtrain.launch.yaml_source import Document, Mark

PROGRAMS = (".py", ".sh")


def is_target(path: Path) -> bool:
    """Return whether a path names what a recipe would run: `train.py`, `task.py:Class`, `package.module:Class`."""
    module, name = entrypoint.split(str(path))
    if not name:
        return path.suffix in PROGRAMS
    return name.isidentifier() and (module.endswith(".py") or _is_dotted(module)) and not path.is_file()


def _is_dotted(module: str) -> bool:
    return all(part.isidentifier() for part in module.split("."))


def document_of(path: Path, set_keys: Sequence[tuple[str, ...]] = ()) -> Document:
    """Make the recipe of a target, whose paths begin in the working directory. A task or function trains one epoch unless these keys of the
    recipe, which are set from outside, say how long."""
    target = str(path)
    kind = _kind(target)
    data: dict[str, Any] = {"name": name_of(target), kind: target}
    if kind != "script" and not {("train",), ("train", "steps"), ("train", "epochs")} & set(set_keys):
        data["train"] = {"epochs": 1}
    return Document(target, data, {(): Mark(target)})


def _kind(target: str) -> str:
    """Tell what a target is, found by reading its file; of one that is found nowhere, what its name looks like."""
    module, name = entrypoint.split(target)
    if not name:
        if not Path(target).is_file():
            raise UsageError(f"there is no file {target}", "Name a recipe (recipe.yaml) or a script (train.py).")
        return "script"
    tree = entrypoint.parsed(Path(module)) if module.endswith(".py") else ""
    defined = [node for node in tree.body if getattr(node, "name", "") == name] if isinstance(tree, ast.Module) else []
    if defined:
        return "task" if isinstance(defined[-1], ast.ClassDef) else "function"
    return "task" if name[0].isupper() else "function"


def text_of(path: Path, job: Job) -> str:
    """Write the recipe of a target as a file, with the arguments and the length that its job has."""
    data = document_of(path).data
    if "train" in data:
        data["train"] = {"steps": job.train.steps} if job.train.steps else {"epochs": job.train.epochs}
    if job.args:
        data["args"] = list(job.args)
    return f"# Made by: dtrain run {path}\n{yaml.safe_dump(data, sort_keys=False)}"


def name_of(target: str) -> str:
    """Make a name for the run, from the file or module that it runs."""
    stem = Path(target if target.endswith(PROGRAMS) else target.rpartition(":")[0] or target.split()[0]).name
    for ending in PROGRAMS:
        stem = stem.removesuffix(ending)
    kept = "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "._-" else "-" for letter in stem)
    return kept.lstrip("._-")[:64] or "run"
