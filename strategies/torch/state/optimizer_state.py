"""An optimizer's state by the names of its parameters, whatever groups they are in and whatever the optimizer keeps besides.

Importing this module imports no framework.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dtrain.common import plain_values

from .packing import packed, unpacked

STATE, GROUPS, OWN, MORE = "state", "param_groups", "own", "more"
"""Sections: of parameters; settings of groups; state under keys that are no parameters; what else its `state_dict` has."""

PACKED = "packed"
"""The only key of a dict that holds another one, packed."""


def state_of(optimizer: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """Return an optimizer's state with the names of parameters for their numbers, as `get_optimizer_state_dict` has it; that
    function takes a step to fill a state that is empty yet."""
    state = optimizer.state_dict()
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    own = {key: part for key, part in state[STATE].items() if not isinstance(key, int)}
    more = {key: part for key, part in state.items() if key not in (STATE, GROUPS)}
    found = {
        STATE: {order[number]: _kept(part) for number, part in state[STATE].items() if isinstance(number, int)},
        GROUPS: [group | {"params": [order[number] for number in group["params"]]} for group in state[GROUPS]],
    }
    return found | {key: packed(part) for key, part in ((OWN, own), (MORE, more)) if part}


def _kept(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter, with dicts in it packed whose keys are no texts: checkpoints turn keys into texts."""
    return {key: {PACKED: packed(value)} if _has_other_keys(value) else value for key, value in state.items()}


def _has_other_keys(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(not isinstance(key, str) or _has_other_keys(part) for key, part in value.items())
    return type(value) in (list, tuple) and any(map(_has_other_keys, value))


def restore(optimizer: Any, found: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Do the opposite of `state_of`: parameters find their state by name, whatever group and place they are in."""
    states = {
        name: {
            key: _unpacked(value[PACKED]) if isinstance(value, Mapping) and value.keys() == {PACKED} else value
            for key, value in state.items()
        }
        for name, state in found[STATE].items()
    }
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    now, groups, defaults = optimizer.state_dict()[GROUPS], optimizer.param_groups, set(optimizer.defaults)
    own, more = (_unpacked(found[key]) if key in found else {} for key in (OWN, MORE))
    optimizer.load_state_dict({
        STATE: {number: states[name] for number, name in enumerate(order) if name in states} | own,
        GROUPS: [
            group | {key: value for key, value in then.items() if key != "params"}
            for group, then in zip(now, found[GROUPS], strict=True)
        ],
    } | more)  # fmt: skip
    # Loading gives tensors the type of their parameter, whatever the optimizer computes them in.
    for name in order:
        state = optimizer.state[parameters[name]]
        for key, value in states.get(name, {}).items():
            if key in state:
                state[key] = _typed_as(value, state[key])
    # A scheduler knows the groups themselves, which loading replaces.
    for group, loaded in zip(groups, optimizer.param_groups, strict=True):
        group.update(loaded)
    optimizer.param_groups = groups
    for key in optimizer.defaults.keys() - defaults:  # torch adds one, which groups that are added later would have
        del optimizer.defaults[key]


def _typed_as(saved: Any, loaded: Any) -> Any:
    """Return what was loaded with the types of the tensors that were saved, in lists and mappings, too (LBFGS has lists)."""
    if hasattr(saved, "dtype") and hasattr(loaded, "device"):
        return saved.to(loaded.device) if saved.dtype != loaded.dtype else loaded
    if isinstance(saved, list | tuple) and type(loaded) in (list, tuple) and len(saved) == len(loaded):
        return type(loaded)(_typed_as(one, other) for one, other in zip(saved, loaded, strict=True))
    if isinstance(saved, Mapping) and isinstance(loaded, Mapping) and saved.keys() == loaded.keys():
        return {key: _typed_as(one, loaded[key]) for key, one in saved.items()}
    return loaded


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """Return the settings of each group, as JSON; raises `plain_values.Unknown` for a value that no checkpoint holds."""
    return [
        {key: plain_values.encoded(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def needs_closure(optimizer: Any) -> bool:
    """Whether `step` cannot be called without a function that computes the loss (LBFGS)."""
    # A scheduler has put a function of its own in the place of the optimizer's method.
    _, *parameters = inspect.signature(type(optimizer).step).parameters.values()
    return any(
        one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters
    )


def with_modes(optimizers: Iterable[Any]) -> list[Any]:
    """Return those that keep other weights for training than for evaluation, and change between them in `train()` and `eval()`."""
    return [one for one in optimizers if callable(getattr(one, "train", None)) and callable(getattr(one, "eval", None))]


@contextmanager
def evaluating(optimizers: Iterable[Any], named: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Models have the weights of evaluation; yields those of training by name, which they have again afterwards, to the last bit. Nothing
    happens, and it yields nothing, for optimizers without modes."""
    import torch

    moded = with_modes(optimizers)
    if not moded:
        yield {}
        return
    parameters = dict(named)
    kept = {name: one.detach().clone() for name, one in parameters.items()}
    settings = [[dict(group) for group in one.param_groups] for one in moded]
    for one in moded:
        one.eval()
    try:
        yield kept
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)
        for one, groups in zip(moded, settings, strict=True):
            for group, then in zip(one.param_groups, groups, strict=True):
                group.update(then)


def pending_gradients(named: Iterable[tuple[str, Any]], used: set[int], ranks: int) -> dict[str, Any]:
    """Collective. The gradients of all parameters but those (by `id`) whose gradient a step of an optimizer has used: the same on every
    rank, or their mean."""
    import torch
    import torch.distributed as dist

    found = {}
    for name, parameter in named:
        gradient = parameter.grad
        if id(parameter) in used or gradient is None or gradient.is_sparse:
            continue
        gradient = gradient.detach()
        if ranks > 1 and not hasattr(gradient, "to_local"):
            most, least = gradient.clone(), -gradient
            for extreme in (most, least):
                dist.all_reduce(torch.view_as_real(extreme) if extreme.is_complex() else extreme, dist.ReduceOp.MAX)
            if not torch.equal(most, -least):
                gradient = gradient.clone()
                dist.all_reduce(gradient)
                gradient /= ranks
        found[name] = gradient
    return found


def _unpacked(found: Mapping[str, Any]) -> Any:
    return unpacked(found["structure"], found.get("tensors", {}))
