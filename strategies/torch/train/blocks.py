"""The modules of a model that are gathered one at a time. Importing this module imports no framework."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dtrain.common.errors import UserError
from dtrain.job import entrypoint
from dtrain.job.task_answers import gave

from ..state.state import plain_name
from .parallel import modules_named

CONTAINERS = ("ModuleList", "ModuleDict")
"""They have no forward pass of their own."""


def chosen(model: Any, wrap: Sequence[str], smallest: int, folder: Path) -> list[Any]:
    """The modules to be gathered one at a time, inner ones before those around them: of these classes, or those that a function of the
    user's (`blocks.py:chosen`) names, or by size if there is neither. Modules that share a parameter (an embedding and the layer tied to
    it) are left to the module around them: one gathers a parameter for all."""
    tied = _tied(model)
    functions = [name for name in wrap if ":" in name]
    classes = tuple(name for name in wrap if name not in functions)
    if not wrap:
        return _by_size(model, smallest, tied)
    named = {id(module) for module in modules_named(model, classes)} if classes else set[int]()
    for function in functions:
        named |= {id(module) for module in _by_function(model, function, folder)}
    found = [module for module in reversed(list(model.modules())) if id(module) in named]
    return [module for module in found if module is not model and not _shares(module, tied)]


def ignored(model: Any, patterns: Sequence[str]) -> set[Any]:
    """The parameters with these names, in which `*` stands for anything, that every worker keeps whole. Raises `UserError` for one that
    would be trained, apart on every worker, and for a pattern without any."""
    found = set()
    named = [(plain_name(name), one) for name, one in model.named_parameters()]
    for pattern in patterns:
        matching = [(name, one) for name, one in named if fnmatch(name, pattern)]
        if not matching:
            raise UserError(
                f"strategy.ignored: no parameter of the model is called {pattern!r}",
                f"There are {', '.join(name for name, _ in named[:5])} …; a * stands for anything.",
            )
        trained = [name for name, one in matching if one.requires_grad]
        if trained:
            raise UserError(
                f"strategy.ignored: {trained[0]} is trained, and would be apart on every worker",
                "Ignore only parameters that are frozen (requires_grad_(False)), or leave it to be sharded.",
            )
        found |= {one for _, one in matching}
    return found


def largest_numel(model: Any, blocks: Iterable[Any]) -> int:
    """The most elements that are gathered at a time."""
    taken: set[int] = set()
    most = 0
    for block in (*blocks, model):
        own = {id(one): one.numel() for one in block.parameters() if id(one) not in taken}
        taken |= own.keys()
        most = max(most, sum(own.values()))
    return most


def _by_function(model: Any, target: str, folder: Path) -> list[Any]:
    import torch

    found = entrypoint.load(target, folder)(model)
    if not isinstance(found, list | tuple) or not all(isinstance(one, torch.nn.Module) for one in found):
        raise UserError(f"strategy.wrap: {target} gave {gave(found)}; expected a list of modules of the model")
    return list(found)


def _by_size(model: Any, smallest: int, tied: dict[int, int]) -> list[Any]:
    taken: set[int] = set()
    found = []
    for module in reversed(list(model.modules())):
        own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
        large = sum(parameter.numel() for parameter in own) >= smallest
        if large and module is not model and type(module).__name__ not in CONTAINERS and not _shares(module, tied):
            found.append(module)
            taken.update(id(parameter) for parameter in own)
    return found


def _tied(model: Any) -> dict[int, int]:
    """Parameter → how many modules hold it themselves, for those that more than one does."""
    holders = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {parameter: count for parameter, count in holders.items() if count > 1}


def _shares(module: Any, tied: dict[int, int]) -> bool:
    """Whether a module has a parameter that a module outside of it has too."""
    if not tied:
        return False
    inside = Counter(id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False))
    return any(count != tied.get(parameter, count) for parameter, count in inside.items())
