"""Recipes written in Python: a mapping or a `Recipe` becomes the same document as a YAML file."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from dtrain.common.errors import UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.job import Checkpoint, Data, Logs, Notify, Recovery, Resources, Storage, Train
from dtrain.launch.target_recipe import name_of
from dtrain.launch.yaml_source import Document

Section = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe in Python, with the keys of a recipe file; `dtrain explain KEY` explains each of them."""

    task: str | type | None = None
    """`file.py:Class`, or the class itself if it is defined in a file."""
    function: str | Callable[..., Any] | None = None
    """`file.py:function`, or the function itself if it is defined in a file."""
    script: str | Section | None = None
    name: str | None = None
    params: Section = field(default_factory=dict)
    args: Sequence[str | int | float] = ()
    preload: Sequence[str] = ()
    init_from: str | Section | None = None
    strategy: str | Section | None = None
    cluster: str | Section | None = None
    resources: Resources | Section | None = None
    train: Train | Section | None = None
    data: Data | Section | None = None
    checkpoint: Checkpoint | Section | None = None
    logs: Logs | Section | None = None
    recovery: Recovery | Section | None = None
    storage: Storage | Section | None = None
    notify: Notify | Section | None = None
    track: Sequence[str | Section] | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def document_of(recipe: Recipe | Mapping[str, Any]) -> Document:
    """The document of a recipe; raises `UsageError` for a task or function that workers could not import."""
    given = _changed(recipe) if isinstance(recipe, Recipe) else dict(recipe)
    for key in ("task", "function"):
        if key in given and not isinstance(given[key], str | None):
            given[key] = _target(given[key], key)
    named = {part: _changed(value) if dataclasses.is_dataclass(value) else value for part, value in given.items()}
    try:
        data = json.loads(json.dumps(named, default=_plain))
    except (TypeError, ValueError) as error:
        raise UsageError(f"the recipe holds something that a recipe file could not: {error}") from None
    if "name" not in data:
        data["name"] = name_of(str(data.get("task") or data.get("function") or data.get("script") or "run"))
    return Document("recipe", data)


def _changed(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as they are by default."""
    fresh = type(value)()
    pairs = ((one.name, getattr(value, one.name)) for one in dataclasses.fields(value))
    return {name: part for name, part in pairs if part != getattr(fresh, name)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _changed(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} (a {type(value).__name__})")


def _target(thing: Any, key: str) -> str:
    """`/path/file.py:Name` of a class or function."""
    name = getattr(thing, "__qualname__", "")
    try:
        source = inspect.getsourcefile(thing)
    except (TypeError, OSError):
        source = None
    if not name or "<" in name:
        raise UsageError(
            f"{key}: {thing!r} has no name by which a worker could find it", "Define it at the top of a file."
        )
    if source is None or not Path(source).is_file() or not source.endswith(".py"):
        raise UsageError(
            f"{key}: {name} is defined in no file, so that workers cannot import it",
            f"Write it into a file (in a notebook: %%writefile task.py) and name it: {key}='task.py:{name}'.",
        )
    return f"{Path(source).resolve()}:{name}"
