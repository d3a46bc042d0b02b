"""Reads a task's class without importing it: the methods that it lacks, and parameters that it does not take."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtrain.common.errors import nearest
from dtrain.job import entrypoint

METHODS = (("model", "models"), ("optimizer", "optimizers"), ("data",), ("loss", "train_step"))
"""A task has one of each."""
MEASURES = ("metrics", "metrics_of")
"""Methods whose dicts are the numbers of an evaluation, if a task has one of them."""
EXPECTED = "a task has model and optimizer (or models and optimizers), data, and loss (or train_step)"
Found = Iterator[tuple[tuple[str, ...], str]]
"""Part of the recipe, and what is wrong with it."""


def problems(target: str, folders: Sequence[str], params: Mapping[str, Any]) -> Found:
    """Pure but for reading the file. A class that other files take part in (bases, decorators) is not judged."""
    lineage = _lineage(target, folders)
    if lineage is None:
        return
    module, name = entrypoint.split(target)
    label = f"{Path(module).name}: {name}"
    there = {attribute for node in lineage for attribute in _attributes(node)}
    for either in METHODS:
        if not there & set(either):
            yield ("task",), f"{label} has no method {' or '.join(either)}: {EXPECTED}"
    signature = next((found for node in lineage for found in _initializers(node)), None)
    yield from _of_params(signature, params, label)


def problem_of_function(target: str, folders: Sequence[str]) -> str:
    """Pure but for reading the file. Why a function cannot be called with a context; '' if it can or cannot be known."""
    name, file = entrypoint.split(target)[1], entrypoint.source(target, folders)
    tree = entrypoint.parsed(file) if file else ""
    found = [node for node in getattr(tree, "body", ()) if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found or found[-1].decorator_list:
        return ""
    arguments = found[-1].args
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = len(positional) - len(arguments.defaults)
    missing = [
        one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    if (positional or arguments.vararg) and needed <= 1 and not missing:
        return ""
    return f"{name} is called with one argument, the context: def {name}(context)"


def has(target: str, folders: Sequence[str], method: str) -> bool:
    """Pure but for reading the file. Whether a class is seen to have a method; False if that cannot be known before it is imported."""
    return any(method in _attributes(node) for node in _lineage(target, folders) or ())


def metric_names(target: str, folders: Sequence[str]) -> list[str] | None:
    """Pure but for reading the file. List the names in the dicts that `metrics` and `metrics_of` are seen to return; None if that cannot be known
    before the class is imported, or if it has neither."""
    lineage = _lineage(target, folders) or []
    written = {
        node.attr for cls in lineage for node in ast.walk(cls) if isinstance(node, ast.Attribute) and _is_stored(node)
    }
    names: list[str] = []
    for method in MEASURES:
        found = next((node for cls in lineage for node in cls.body if getattr(node, "name", "") == method), None)
        if found is None and not any(method in _attributes(cls) for cls in lineage) and method not in written:
            continue
        if not isinstance(found, ast.FunctionDef) or found.decorator_list or method in written:
            return None
        returns = [node.value for node in ast.walk(found) if isinstance(node, ast.Return)]
        keys = [key for value in returns for key in (value.keys if isinstance(value, ast.Dict) else [None])]
        texts = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
        if not texts or len(texts) < len(keys):
            return None
        names += texts
    return list(dict.fromkeys(names)) or None


def _is_stored(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def _lineage(target: str, folders: Sequence[str]) -> list[ast.ClassDef] | None:
    """The class and its bases, in Python's order for single inheritance; None if that cannot be read here."""
    name = entrypoint.split(target)[1]
    file = entrypoint.source(target, folders)
    tree = entrypoint.parsed(file) if file else ""
    if isinstance(tree, str):
        return None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    lineage: list[ast.ClassDef] = []
    while name != "object":
        node = classes.get(name)
        if node is None or node in lineage or node.decorator_list or node.keywords or len(node.bases) > 1:
            return None
        lineage.append(node)
        base = node.bases[0] if node.bases else ast.Name("object")
        if not isinstance(base, ast.Name):
            return None
        name = base.id
    return lineage


def _attributes(node: ast.ClassDef) -> Iterator[str]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield part.name
        for target in part.targets if isinstance(part, ast.Assign) else ():
            yield from (leaf.id for leaf in ast.walk(target) if isinstance(leaf, ast.Name))
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            yield part.target.id
        elif isinstance(part, ast.If | ast.Try | ast.With):
            yield from (one.name for one in ast.walk(part) if isinstance(one, ast.FunctionDef))


def _initializers(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")


def _of_params(signature: ast.FunctionDef | None, params: Mapping[str, Any], label: str) -> Found:
    if signature is not None and (signature.decorator_list or signature.args.kwarg):
        return
    known, required = _parameters(signature.args) if signature else ([], [])
    for key in params:
        if key not in known:
            hint = nearest(key, known) if known else "It takes none."
            yield ("params", str(key)), f"{label} does not take '{key}'. {hint}"
    for key in required:
        if key not in params:
            yield ("params",), f"{label} needs '{key}', which has no default: give it under params"


def _parameters(arguments: ast.arguments) -> tuple[list[str], list[str]]:
    """Names that can be given, and those that must be."""
    positional = arguments.args if arguments.posonlyargs else arguments.args[1:]
    without = len(positional) - len(arguments.defaults)
    required = [one.arg for one in positional[: max(0, without)]]
    required += [
        one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    return [one.arg for one in (*positional, *arguments.kwonlyargs)], required
