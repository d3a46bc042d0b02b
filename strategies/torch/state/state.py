"""What a PyTorch checkpoint holds, found by name: models, optimizers, schedulers, and what the user registered.

It is read by `torch.distributed.checkpoint`, so that it loads under every strategy at every size. Importing this module
imports no framework.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.api.training_backend import Fetch, nothing_to_fetch
from dtrain.common.errors import CheckpointError

from ... import plain_values
from . import safe_reader
from .packing import leaves, packed, places, unpacked

ONLY = ""
"""The name of a task's only model and only optimizer, which have none."""
MOST_SHOWN = 5
SAME = "Resume with the model and the optimizer that it was made with, or begin a new run."


@dataclass
class TorchState:
    """Everything with a state, by name. The models are the user's own modules, without a wrapper around them."""

    models: dict[str, Any]
    optimizers: dict[str, Any] = field(default_factory=dict)
    schedulers: dict[str, Any] = field(default_factory=dict)
    registered: dict[str, Any] = field(default_factory=dict)

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield parameters by the names in checkpoints; those of one of several models begin with its name."""
        for name, model in self.models.items():
            for parameter_name, parameter in model.named_parameters():
                yield f"{name}.{plain_name(parameter_name)}".removeprefix("."), parameter

    def gathered(self) -> dict[str, Any]:
        """The state as it is now, in the form that is written; tensors are not copied."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        state: dict[str, Any] = {}
        models = {name: get_model_state_dict(model) for name, model in self.models.items()}
        state |= {"model": models[ONLY]} if ONLY in models else {"models": models}
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        optimizers = {name: _of_optimizer(optimizer, names) for name, optimizer in self.optimizers.items()}
        state |= {"optimizer": optimizers[ONLY]} if ONLY in optimizers else {"optimizers": optimizers}
        for section, things in (("schedulers", self.schedulers), ("registered", self.registered)):
            if things:
                state[section] = {name or "only": packed(thing.state_dict()) for name, thing in things.items()}
                for name, part in state[section].items():
                    plain_values.require_storable(
                        part["structure"], f"'{name}'" if section == "registered" else "the scheduler"
                    )
        return state

    def load(self, folder: Path, group: Any, fetch: Fetch = nothing_to_fetch) -> Stored:
        """Collective. Take over a checkpoint; raises `CheckpointError` that names what does not fit."""
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        stored = Stored(folder, group, fetch)
        state = self.gathered()
        section = "model" if ONLY in self.models else "models"
        models = {section: state[section]}
        stored.check_models(models)
        optimizers = "optimizer" if ONLY in self.optimizers else "optimizers"
        parameters = dict(self.named_parameters())
        wanted = {optimizers: stored.optimizers(optimizers, self.optimizers, parameters)} if self.optimizers else {}
        state = models | wanted
        stored.read(state)
        for name, model in self.models.items():
            set_model_state_dict(model, state["model"] if name == ONLY else state["models"][name])
        for name, optimizer in self.optimizers.items():
            found = state["optimizer"] if name == ONLY else state["optimizers"][name]
            _into_optimizer(optimizer, found, parameters)
            stored.groups[name] = found["param_groups"]
        stored.check_names("schedulers", [name or "only" for name in self.schedulers])
        for name, scheduler in self.schedulers.items():
            stored.give("schedulers", name or "only", scheduler)
        for name, thing in self.registered.items():
            stored.give("registered", name, thing)
        return stored

    def restore_groups(self, stored: Stored) -> None:
        """Give the optimizers the rates and other settings of a loaded checkpoint once more: the constructor of a scheduler, which a
        function makes after its optimizer was loaded, has written its own into them."""
        for name, groups in stored.groups.items():
            for group, then in zip(self.optimizers[name].param_groups, groups, strict=True):
                group.update({key: value for key, value in then.items() if key != "params"})


class Stored:
    """A checkpoint in a folder, read by names."""

    def __init__(self, folder: Path, group: Any, fetch: Fetch) -> None:
        self.folder = folder
        self._group = group
        self._fetch = fetch
        metadata = safe_reader.reader(folder).read_metadata()
        self.groups: dict[str, list[dict[str, Any]]] = {}
        """Name of an optimizer → its groups as they were saved, once they are loaded."""
        self._entries: dict[str, Any] = dict(metadata.state_dict_metadata)
        self._paths: dict[str, tuple[Any, ...]] = dict(metadata.planner_data or {})

    def read(self, state: dict[str, Any]) -> None:
        """Collective. Fill a state of this checkpoint's names."""
        import torch.distributed.checkpoint as dcp

        dcp.load(
            state,
            storage_reader=safe_reader.reader(self.folder, self._fetch),
            planner=safe_reader.planner(self.folder),
            process_group=self._group,
            no_dist=self._group is None,
        )

    def weights(self) -> dict[str, Any]:
        """The state of the models, whole, on the host; the names of one of several models begin with its own. Without a group."""
        chosen = {key: path for key, path in self._paths.items() if path[0] in ("model", "models")}
        state: dict[str, Any] = {}
        for key, path in chosen.items():
            _put(state, path, self._template(key))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            self.read(state)
        return {".".join(map(str, path[1:])): _got(state, path) for path in chosen.values()}

    def names(self, section: str) -> list[str]:
        """Return the names of the things in a section."""
        return list(dict.fromkeys(str(path[1]) for path in self._paths.values() if path[0] == section))

    def check_names(self, section: str, names: list[str]) -> None:
        """Raise `CheckpointError` if a section has other things in it than these."""
        there = self.names(section)
        if set(there) != set(names):
            raise self.refused(
                f"has the {section} {', '.join(sorted(there)) or '(none)'}, and this run {', '.join(sorted(names)) or '(none)'}"
            )

    def check_models(self, state: dict[str, Any]) -> None:
        """Raise `CheckpointError` that lists the tensors that are not the same in the models and in the checkpoint."""
        (section,) = state
        if section == "models":
            self.check_names("models", list(state["models"]))
        elif self.names("models"):
            raise self.refused(f"has the models {', '.join(self.names('models'))}, and this run one without a name")
        told = []
        own = dict(_flat(state))
        for key in dict.fromkeys((*own, *(key for key in self._entries if key.startswith(f"{section}.")))):
            there, here = self._shape(key), _shape_of(own[key]) if key in own else None
            if there != here:
                name = key.removeprefix(f"{section}.")
                told.append(f"{name}: {_told(there)} in the checkpoint, {_told(here)} in the model")
        if told:
            more = [f"and {len(told) - MOST_SHOWN + 1} more"] if len(told) > MOST_SHOWN else []
            shown = told[: MOST_SHOWN - len(more)] + more
            raise self.refused("does not fit the model:\n  " + "\n  ".join(shown))

    def _shape(self, key: str) -> Any:
        entry = self._entries.get(key)
        return None if entry is None else tuple(entry.size) if hasattr(entry, "size") else "object"

    def optimizers(self, section: str, optimizers: dict[str, Any], parameters: dict[str, Any]) -> Any:
        """A state to read the optimizers into: whatever the checkpoint has, as tensors laid out like the parameters."""
        if section == "optimizers":
            self.check_names(section, list(optimizers))
            return {name: self._optimizer((section, name), optimizers[name], parameters) for name in optimizers}
        if self.names("optimizers"):
            raise self.refused(
                f"has the optimizers {', '.join(self.names('optimizers'))}, and this run one without a name"
            )
        return self._optimizer((section,), optimizers[ONLY], parameters)

    def _optimizer(self, path: tuple[str, ...], optimizer: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"state": {}, "param_groups": [{} for _ in optimizer.param_groups]}
        wanted = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        own = {name for name, parameter in parameters.items() if id(parameter) in wanted}
        for key, entry_path in self._paths.items():
            if entry_path[: len(path)] != path:
                continue
            kind, *rest = entry_path[len(path) :]
            if kind == "param_groups":
                self._into_group(found["param_groups"], key, rest, optimizer)
                continue
            name, *inner = rest
            if name not in own:
                raise self.refused(f"has state of the optimizer for {name}, which this optimizer does not train")
            _put(found["state"].setdefault(name, {}), inner, self._template(key, parameters[name]))
        return found

    def _into_group(self, groups: list[dict[str, Any]], entry: str, rest: list[Any], optimizer: Any) -> None:
        number, key = int(rest[0]), str(rest[1])
        if number >= len(groups):
            raise self.refused(f"has state of an optimizer with more than the {len(groups)} groups of this one")
        own = optimizer.param_groups[number]
        if key not in own and (lacking := own.keys() - self._group_keys(entry, key)):
            # Another optimizer's; otherwise it was added by a scheduler or by the user's code.
            kind = type(optimizer).__name__
            raise self.refused(
                f"has state of another optimizer ('{key}' in group {number}), which {kind} does not know; it lacks '{min(lacking)}'"
            )
        _put(groups[number], rest[1:], self._template(entry))

    def _group_keys(self, entry: str, key: str) -> set[str]:
        """The keys that are stored in the same group as this entry."""
        path = self._paths[entry]
        above = path[: path.index(key)]
        return {
            str(one[len(above)]) for one in self._paths.values() if one[: len(above)] == above and len(one) > len(above)
        }

    def _template(self, key: str, like: Any = None) -> Any:
        """Room for an entry: laid out like the parameter it belongs to if it has its shape."""
        import torch

        entry = self._entries[key]
        if not hasattr(entry, "size"):
            return None
        dtype = entry.properties.dtype
        if isinstance(like, torch.Tensor) and tuple(like.shape) == tuple(entry.size):
            return torch.empty_like(like.detach(), dtype=dtype)
        return torch.empty(entry.size, dtype=dtype)

    def give(self, section: str, name: str, thing: Any) -> None:
        """Collective. Give an object the state that is stored under its name."""
        if name not in self.names(section):
            raise self.refused(f"has no state of '{name}', which this run registers")
        state: dict[str, Any] = {section: {name: {"structure": None}}}
        self.read(state)
        structure = state[section][name]["structure"]
        now = dict(leaves(thing.state_dict()))
        tensors = {
            number: self._template(f"{section}.{name}.tensors.{number}", now.get(path))
            for number, path in places(structure)
        }
        if tensors:
            state = {section: {name: {"tensors": tensors}}}
            self.read(state)
        thing.load_state_dict(unpacked(structure, state[section][name].get("tensors", {})))

    def refused(self, why: str) -> CheckpointError:
        """The error for a checkpoint that does not fit."""
        return CheckpointError(f"the checkpoint {self.folder.name} {why}", SAME)


def plain_name(name: str) -> str:
    """A parameter's name without the wrapper that computes activations again."""
    return name.replace("_checkpoint_wrapped_module.", "")


def _of_optimizer(optimizer: Any, names: dict[int, str]) -> dict[str, Any]:
    """Return an optimizer's state with the names of parameters for their numbers, as `get_optimizer_state_dict` has
    it; that function takes a step to fill a state that is empty yet."""
    state = optimizer.state_dict()
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    return {
        "state": {order[number]: part for number, part in state["state"].items()},
        "param_groups": [
            {key: _plain(value) for key, value in group.items()}
            | {"params": [order[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def _plain(value: Any) -> Any:
    """A number of numpy as Python's; everything else as it is."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def _into_optimizer(optimizer: Any, found: dict[str, Any], parameters: dict[str, Any]) -> None:
    """The opposite of `_of_optimizer`: parameters find their state by name, whatever group and place they are in."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    now, groups = optimizer.state_dict()["param_groups"], optimizer.param_groups
    optimizer.load_state_dict({
        "state": {number: found["state"][name] for number, name in enumerate(order) if name in found["state"]},
        "param_groups": [
            group | {key: value for key, value in then.items() if key != "params"}
            for group, then in zip(now, found["param_groups"], strict=True)
        ],
    })  # fmt: skip
    # A scheduler knows the groups themselves, which loading replaces.
    for group, loaded in zip(groups, optimizer.param_groups, strict=True):
        group.update(loaded)
    optimizer.param_groups = groups


def _flat(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shape_of(value: Any) -> Any:
    return tuple(value.shape) if hasattr(value, "shape") else "object"


def _told(shape: Any) -> str:
    return "not there" if shape is None else str(shape)


def _put(container: Any, path: Sequence[Any], value: Any) -> None:
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


def _got(container: Any, path: Sequence[Any]) -> Any:
    for part in path:
        container = container[part]
    return container
