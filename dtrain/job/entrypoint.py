"""The user's code: found without running it on the launcher, imported after the fork in a worker."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from dtrain.common.errors import nearest
from dtrain.job import code
from dtrain.job.job import Job, ScriptModule

MOST_FILES = 50
"""Of a program's own that are looked at for its imports."""


def split(target: str) -> tuple[str, str]:
    """`file.py:Name` or `package.module:Name` in its two parts; the second is empty if there is none."""
    module, _, name = target.rpartition(":")
    return (module, name) if module else (name, "")


def code_of(job: Job) -> str:
    """The file, program or module that a job runs, as its recipe names it."""
    if isinstance(job.script, ScriptModule):
        return job.script.module
    return job.script or split(job.target)[0]


def problem(target: str, folders: Sequence[str], kind: type[ast.AST]) -> str:
    """Why a target cannot be what the recipe says, found by reading the file; '' if it can or cannot be known."""
    module, name = split(target)
    what = "class" if kind is ast.ClassDef else "function"
    if not name:
        return f"'{target}' is not of the form file.py:{what}_name or package.module:{what}_name"
    if not all(part.isidentifier() for part in name.split(".")) or ":" in module:
        return f"'{target}' is not of the form file.py:{what}_name or package.module:{what}_name"
    if not module.endswith(".py"):
        dotted = all(part.isidentifier() for part in module.split("."))
        if not dotted:
            return f"'{module}' is neither a Python file (file.py) nor a module (package.module)"
    path = source(target, folders)
    if path is None:
        return ""
    if not code.is_file(path):
        folder = Path(folders[0])
        others = [str(file.relative_to(folder)) for file in folder.glob("*.py")]
        return f"there is no file {path}. {nearest(module, others) if others else ''}".rstrip()
    tree = parsed(path)
    if isinstance(tree, str):
        return tree
    names = [node.name for node in tree.body if isinstance(node, kind) and hasattr(node, "name")]
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if name in names or name in imported | assigned:
        return ""
    return f"{module} has no {what} '{name}'. {nearest(name, names) if names else ''}".rstrip()


def source(target: str, folders: Sequence[str]) -> Path | None:
    """Return the file that a target is defined in, which may be missing; None for a module that is found nowhere, or is no Python file."""
    module, _ = split(target)
    if module.endswith(".py"):
        return Path(folders[0], module)
    spec = _spec(module, folders)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def parsed(path: Path) -> ast.Module | str:
    """The syntax tree of a Python file, or what is wrong with it."""
    try:
        return ast.parse(code.read(path), str(path))
    except SyntaxError as error:
        return f"{path}:{error.lineno}: {error.msg}"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"


def imports(path: Path) -> frozenset[str]:
    """Top-level packages that a Python file imports anywhere in it, found by reading."""
    tree = parsed(path)
    if isinstance(tree, str):
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return frozenset(found)


def imports_below(path: Path, folder: str) -> frozenset[str]:
    """Top-level packages that a program imports itself or through files of its own: those beside it and in its folder."""
    found: set[str] = set()
    waiting, seen = [path], {path}
    while waiting and len(seen) < MOST_FILES:
        one = waiting.pop()
        for name in imports(one):
            found.add(name)
            for beside in {path.parent, Path(folder)}:
                local = {beside / f"{name}.py", *(beside / name).glob("*.py")} - seen
                waiting += [file for file in local if code.is_file(file)]
                seen |= local
    return frozenset(found)


def script_file(job: Job) -> Path | None:
    """The Python file that a script job runs, found without importing anything; None for other programs."""
    if isinstance(job.script, ScriptModule):
        return module_file(job.script.module, job.code_folders)
    path = Path(job.folder) / str(job.script)
    return path if path.suffix == ".py" else None


def _spec(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    """Find where a module lies, in these folders or among what is installed, without importing anything."""
    first, *inner = name.split(".")
    try:
        spec = PathFinder.find_spec(first, [*folders, *sys.path]) or importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    for part in inner:
        places = list(spec.submodule_search_locations or ()) if spec else []
        spec = PathFinder.find_spec(part, places) if places else None
    return spec


def module_file(name: str, folders: Sequence[str]) -> Path | None:
    """The file that `python -m NAME` would run, found without importing anything."""
    spec = _spec(name, folders)
    if spec and spec.submodule_search_locations:
        spec = PathFinder.find_spec("__main__", list(spec.submodule_search_locations))
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def names(path: Path) -> frozenset[str]:
    """Every name and attribute that stands in a Python file, found by reading."""
    tree = parsed(path)
    if isinstance(tree, str):
        return frozenset()
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return frozenset(found)


def enter(job: Job, folder: str) -> None:
    """Have this process, and those that it starts, find the user's modules as a recipe says that lies in this folder."""
    folders = replace(job, folder=folder).code_folders
    sys.path[:0] = folders
    if job.pythonpath:
        os.environ["PYTHONPATH"] = os.pathsep.join([*folders[1:], *filter(None, [os.environ.get("PYTHONPATH")])])


def load(target: str, folder: Path) -> Any:
    """Import a target in a worker. A file is imported by its own name, so that what it defines can be pickled; with its package if it
    has one; and under a private name if its own is another module's (`code.py`) or none (`my.task.py`)."""
    module, name = split(target)
    loaded: Any = _of_file((folder / module).resolve()) if module.endswith(".py") else importlib.import_module(module)
    for part in name.split("."):
        loaded = getattr(loaded, part)
    return loaded


class _ImportEnds(BaseException):
    """Raised inside a file that starts runs itself: what stands above that line is all that a worker needs."""


_importing: list[Path] = []
"""The user's file that is being imported here."""


def end_import() -> None:
    """End the import of a user's file that is under way in this process; otherwise do nothing."""
    if _importing:
        raise _ImportEnds


def _of_file(path: Path) -> ModuleType:
    name, root = _module_name(path)
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    spec = importlib.util.spec_from_file_location(name, path, loader=code.loader_of(name, path))
    assert spec is not None
    assert spec.loader is not None
    if "." in name:
        importlib.import_module(name.rpartition(".")[0])
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
    _importing.append(path)
    try:
        spec.loader.exec_module(loaded)
    except _ImportEnds:
        pass
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        _importing.pop()
    return loaded


def _module_name(path: Path) -> tuple[str, Path]:
    """The name that a file is imported under, and the folder that Python finds it by."""
    root = import_root(path)
    parts = [*path.relative_to(root).parts[:-1], path.stem]
    if not all(part.isidentifier() for part in parts):
        return "_dtrain_" + re.sub(r"\W", "_", path.stem), path.parent
    first = parts[0]
    if first in sys.stdlib_module_names or first in sys.builtin_module_names or _is_another(first, root):
        parts[0] = f"_dtrain_{first}"
    return (".".join(parts) if len(parts) == 1 or parts[0] == first else parts[0] + "_" + "_".join(parts[1:])), root


def import_root(path: Path) -> Path:
    """The folder that Python finds a file from: that of its outermost package, or its own."""
    root = path.parent
    while code.is_file(root / "__init__.py"):
        root = root.parent
    return root


def _is_another(name: str, root: Path) -> bool:
    """Whether a module of this name, from somewhere else, is in use already."""
    known = sys.modules.get(name)
    places = [getattr(known, "__file__", None) or "", *getattr(known, "__path__", ())] if known else []
    return bool(known) and not any(Path(place).resolve().is_relative_to(root) for place in places if place)
