"""Defaults for the keys of recipes, of a person (`~/.config/dtrain/config.yaml`) and of a project (`.dtrain.yaml`), in profiles with names."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from dtrain.common import environment
from dtrain.common.errors import UsageError, nearest
from dtrain.launch.yaml_source import Document, parse, unknown_key
from dtrain.launch.yaml_source import Path as Place

PROJECT = ".dtrain.yaml"
KEYS = ("defaults", "profiles")
HOST = "host"
"""Key of a profile alone: the machine to type commands on."""
PLUGINS = ("strategy", "cluster")
"""Sections whose options belong to a name."""


def user_file() -> Path:
    """Return the file of the person who types, whether it exists or not."""
    if given := os.environ.get(environment.CONFIG):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dtrain" / "config.yaml"


def project_file(folder: Path) -> Path | None:
    """Return the project's file in a folder or the nearest one above; folders of other owners end the search."""
    try:
        owner = folder.stat().st_uid
        for above in (folder, *folder.parents):
            if above.stat().st_uid != owner:
                return None
            if (above / PROJECT).is_file():
                return above / PROJECT
    except OSError:
        pass
    return None


def fill(document: Document, folder: Path) -> tuple[str, ...]:
    """Give a recipe in this folder the values that it leaves out: of the profile in DTRAIN_PROFILE, then of the defaults, each time those
    of the project first. Returns for every value its key and where it stands. Raises `UsageError` if no file has the profile."""
    sources = _sources(folder)
    for source in sources:
        document.problems += source.problems
    layers: list[tuple[Document, Place]] = []
    if name := os.environ.get(environment.PROFILE):
        layers += [(source, ("profiles", name)) for source in _with_profile(name, sources)]
    layers += [(source, ("defaults",)) for source in sources]
    filled = list[str]()
    for source, place in layers:
        values: Any = source.data
        for part in place:
            values = values[part]
        own = {key: value for key, value in values.items() if (place[0], key) != ("profiles", HOST)}
        _fill(document, document.data, own, (), source, place, filled)
    return tuple(filled)


def host_of(name: str, path: Path) -> str:
    """Return the machine that a profile names for recipes at this path; '' if none. Raises `UsageError` if there is no such profile."""
    found = _with_profile(name, _sources(path if path.is_dir() else path.parent))
    return next((str(one.data["profiles"][name][HOST]) for one in found if one.data["profiles"][name].get(HOST)), "")


def _sources(folder: Path) -> list[Document]:
    """Read the files of defaults that hold for recipes in a folder, that of the project first."""
    return [_read(file) for file in (project_file(folder), user_file()) if file and file.is_file()]


def _with_profile(name: str, sources: list[Document]) -> list[Document]:
    """Return the files that have a profile; raises `UsageError` if none has."""
    found = [source for source in sources if name in source.data["profiles"]]
    if not found and not any(source.problems for source in sources):
        raise _unknown(name, sources)
    return found


def _read(file: Path) -> Document:
    """Read a file of defaults; whatever is wrong with its form is a problem with a place."""
    try:
        source = parse(file.read_text(encoding="utf-8-sig"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', '') or error}") from None
    source.problems = [one for one in source.problems if one[1] != "the recipe is empty"]
    for key in source.data:
        if key not in KEYS:
            source.problems.append((source.mark((key,)), unknown_key(key, list(KEYS))))
    data = {key: source.data.get(key) or {} for key in KEYS}
    wrong = [(key,) for key in KEYS if not isinstance(data[key], dict)]
    if not wrong:
        wrong = [("profiles", name) for name, values in data["profiles"].items() if not isinstance(values, dict)]  # type: ignore[misc]
    source.problems += [(source.mark(place), "expected a mapping of a recipe's keys to values") for place in wrong]
    source.data = data if not wrong else {key: {} for key in KEYS}
    return source


def _unknown(name: str, sources: list[Document]) -> UsageError:
    files = [source.source for source in sources]
    known = sorted({profile for source in sources for profile in source.data["profiles"]})
    if not known:
        where = " and ".join(files) or f"{PROJECT} of the project and {user_file()}"
        return UsageError(
            f"there is no profile '{name}': {where} {'have none' if files else 'do not exist'}",
            f"Write it: profiles: {{{name}: {{resources: {{workers: 8}}}}}}",
        )
    return UsageError(f"there is no profile '{name}' in {' or '.join(files)}. {nearest(name, known)}")


def _fill(
    document: Document, target: dict[str, Any], values: dict[str, Any], path: Place, source: Document, place: Place, filled: list[str]
) -> None:  # fmt: skip
    """Copy what a mapping of the recipe leaves out, with the places, from the same mapping of a file of defaults."""
    for key, value in values.items():
        here = (*path, key)
        if not path and key in PLUGINS:
            value = {"name": value} if isinstance(value, str) else value
            if isinstance(target.get(key), str):
                target[key] = {"name": target[key]}
            if (
                isinstance(target.get(key), dict)
                and isinstance(value, dict)
                and target[key].get("name") != value.get("name")
            ):
                continue  # the options of another plugin
        if key not in target:
            target[key] = copy.deepcopy(value)
            depth = len(place) + len(here)
            inside = {at: mark for at, mark in source.marks.items() if at[:depth] == (*place, *here)}
            document.marks.update({(*here, *at[depth:]): mark for at, mark in inside.items()})
            filled.append(f"{source.mark((*place, *here))}: {'.'.join(map(str, here))}")
        elif isinstance(target[key], dict) and isinstance(value, dict):
            _fill(document, target[key], value, here, source, place, filled)
