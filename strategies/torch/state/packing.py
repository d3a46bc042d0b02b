"""Any object's state in two parts: its tensors, which a checkpoint lays out over the ranks, and all the rest as one value.

`torch.distributed.checkpoint` takes nested dicts apart and turns their keys into strings; a tuple it keeps whole.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

MARK = "__tensor__"
"""The only key of the dict that stands for a tensor; its value is the tensor's number."""
Path = tuple[Any, ...]


def packed(state: Any) -> dict[str, Any]:
    """`structure`, a copy of everything but the tensors, and `tensors` by their numbers, not copied."""
    import torch

    tensors: dict[str, Any] = {}

    def numbered(_: Path, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return copy.deepcopy(leaf)
        tensors[str(len(tensors))] = leaf
        return {MARK: len(tensors) - 1}

    return {"structure": (_mapped(state, numbered),)} | ({"tensors": tensors} if tensors else {})


def unpacked(structure: tuple[Any], tensors: Mapping[str, Any]) -> Any:
    """Restore the state."""
    return _mapped(structure[0], lambda _, leaf: tensors[str(leaf[MARK])] if _is_mark(leaf) else leaf)


def places(structure: tuple[Any]) -> Iterator[tuple[str, Path]]:
    """Of every tensor its number, and where it was."""
    return ((str(leaf[MARK]), path) for path, leaf in leaves(structure[0]) if _is_mark(leaf))


def leaves(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Whatever is not a dict, a list or a tuple, and where it is."""
    if isinstance(state, Mapping) and not _is_mark(state):
        for key, value in state.items():
            yield from leaves(value, (*path, key))
    elif type(state) in (list, tuple):
        for number, value in enumerate(state):
            yield from leaves(value, (*path, number))
    else:
        yield path, state


def _is_mark(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {MARK}


def _mapped(state: Any, function: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same nested state with another value for every leaf."""
    if isinstance(state, Mapping) and not _is_mark(state):
        return {key: _mapped(value, function, (*path, key)) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_mapped(value, function, (*path, number)) for number, value in enumerate(state))
    return function(path, state)


def put(container: Any, path: Sequence[Any], value: Any) -> None:
    """Set a value in nested dicts and lists, making what is missing on the way."""
    for here, following in itertools.pairwise(path):
        if isinstance(container, list):
            container.extend([None] * (here + 1 - len(container)))
            container[here] = container[here] or ([] if isinstance(following, int) else {})
            container = container[here]
        else:
            container = container.setdefault(here, [] if isinstance(following, int) else {})
    if isinstance(container, list):
        container.extend([None] * (path[-1] + 1 - len(container)))
    container[path[-1]] = value


def got(container: Any, path: Sequence[Any]) -> Any:
    """Return the value at a place in nested dicts and lists."""
    for part in path:
        container = container[part]
    return container
