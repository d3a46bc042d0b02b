"""What a PyTorch checkpoint holds, found by name: models, optimizers, schedulers, and what the user registered.

It is read by `torch.distributed.checkpoint`, so that it loads under every strategy at every size. Importing this module
imports no framework.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.api.training_backend import Fetch, nothing_to_fetch
from dtrain.common import plain_values
from dtrain.common.errors import CheckpointError, UserError

from . import layouts, optimizer_state, safe_reader, tensor_files
from .index import INDEX
from .packing import got, leaves, packed, places, put, unpacked

ONLY = ""
"""The name of a task's only model and only optimizer, which have none."""
SETTINGS = "settings"
"""Section of what the groups of the optimizers were made with, by the optimizer's name."""
GRADIENTS, TRAINING_WEIGHTS = "gradients", "training_weights"
"""Sections, by names of parameters: gradients that no step has used yet; weights of optimizers that have others for evaluation."""
MOST_SHOWN = 5
SAME = "Resume with the model and the optimizer that it was made with, or begin a new run."


@dataclass
class TorchState:
    """Everything with a state, by name. The models are the user's own modules, without a wrapper around them."""

    models: dict[str, Any]
    optimizers: dict[str, Any] = field(default_factory=dict)
    schedulers: dict[str, Any] = field(default_factory=dict)
    registered: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Name of an optimizer → the settings of its groups as the user's code made them, as JSON."""

    def note_settings(self) -> None:
        """Keep the settings of groups that are new, of those that are added while training without a rate, which a scheduler may have
        changed already; raises `UserError` for a value that checkpoints do not hold."""
        for name, optimizer in self.optimizers.items():
            known = self.settings.setdefault(name, [])
            if len(known) == len(optimizer.param_groups):
                continue
            try:
                added = optimizer_state.settings_of(optimizer)[len(known) :]
                known += [{key: group[key] for key in group if key != "lr"} for group in added] if known else added
            except plain_values.Unknown as error:
                raise UserError(
                    f"a group of the optimizer{f' {name!r}' if name else ''} holds an object of {error}, which checkpoints do not: "
                    "keep plain values, lists, dicts and tensors in its groups"
                ) from None

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
        parameters = dict(self.named_parameters())
        names = {id(parameter): name for name, parameter in parameters.items()}
        optimizers = {name: optimizer_state.state_of(optimizer, names) for name, optimizer in self.optimizers.items()}
        state |= {"optimizer": optimizers[ONLY]} if ONLY in optimizers else {"optimizers": optimizers}
        orders = {name: layouts.orders(found[optimizer_state.STATE], parameters) for name, found in optimizers.items()}
        state[layouts.SECTION] = {name or "only": json.dumps(found) for name, found in orders.items()}
        for section, things in (("schedulers", self.schedulers), ("registered", self.registered)):
            if things:
                state[section] = {name or "only": packed(thing.state_dict()) for name, thing in things.items()}
                for name, part in state[section].items():
                    plain_values.require_storable(
                        part["structure"], f"'{name}'" if section == "registered" else "the scheduler"
                    )
        self.note_settings()
        state[SETTINGS] = {name or "only": json.dumps(settings) for name, settings in self.settings.items()}
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
            optimizer_state.restore(optimizer, found, parameters)
            stored.groups[name] = found[optimizer_state.GROUPS]
        stored.check_names("schedulers", [name or "only" for name in self.schedulers])
        for name, scheduler in self.schedulers.items():
            stored.give("schedulers", name or "only", scheduler)
        for name, thing in self.registered.items():
            stored.give("registered", name, thing)
        for section in (GRADIENTS, TRAINING_WEIGHTS):
            self._restore_tensors(section, stored, parameters)
        return stored

    def _restore_tensors(self, section: str, stored: Stored, parameters: Mapping[str, Any]) -> None:
        """Collective. Give parameters the gradients or the weights of training that a checkpoint may have."""
        import torch

        found = stored.tensors_like(section, parameters)
        with torch.no_grad():
            for name, value in found.items():
                if section == GRADIENTS:
                    parameters[name].grad = value
                else:
                    parameters[name].copy_(value)

    def restore_groups(self, stored: Stored) -> list[str]:
        """Give the optimizers the rates and other settings of a loaded checkpoint once more: the constructor of a scheduler, which a
        function makes after its optimizer was loaded, has written its own into them. What the user's code sets otherwise than it did in
        the beginning is applied, and returned in words."""
        told = []
        for name, groups in stored.groups.items():
            before, now = stored.settings(name), self.settings[name]
            now += before[len(now) : len(groups)]
            self.note_settings()
            edited = _edited(now, before)
            for number, (group, then) in enumerate(zip(self.optimizers[name].param_groups, groups, strict=True)):
                new = edited[number] if number < len(edited) else {}
                if "initial_lr" in then:  # a scheduler has the rate that it began with in its own state
                    new.pop("lr", None)
                for key in group.keys() - then.keys() - now[number].keys() - {"params"}:
                    del group[key]  # a scheduler's constructor put it into a group that is older than the scheduler
                group.update({key: value for key, value in then.items() if key != "params"} | new)
                which = f"{name} group {number}" if name else f"group {number}"
                told += [f"{key} of {which}: {then.get(key)} → {value}" for key, value in new.items()]
        return told


class Stored:
    """A checkpoint in a folder, read by names."""

    def __init__(self, folder: Path, group: Any, fetch: Fetch) -> None:
        self.folder = folder
        self._group = group
        self._fetch = fetch
        self._metadata = metadata = safe_reader.reader(folder).read_metadata()
        self.groups: dict[str, list[dict[str, Any]]] = {}
        """Name of an optimizer → its groups as they were saved, once they are loaded."""
        self._entries: dict[str, Any] = dict(metadata.state_dict_metadata)
        self._paths: dict[str, tuple[Any, ...]] = dict(metadata.planner_data or {})

    def settings(self, name: str) -> list[dict[str, Any]]:
        """Collective. Return what was kept by `TorchState.note_settings`; [] in a checkpoint of an older version."""
        return self._json(SETTINGS, name) or []

    def _json(self, section: str, name: str) -> Any:
        """Collective. None in a checkpoint of an older version."""
        if (name or "only") not in self.names(section):
            return None
        state: dict[str, Any] = {section: {name or "only": None}}
        self.read(state)
        return json.loads(state[section][name or "only"])

    def tensors_like(self, section: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Collective. The tensors of a section that has names of parameters; {} if the checkpoint has none."""
        names = [name for name in self.names(section) if name in parameters]
        if not names:
            return {}
        state = {section: {name: self._template(f"{section}.{name}", parameters[name]) for name in names}}
        self.read(state)
        return state[section]

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

    def weights(self) -> Mapping[str, Any]:
        """The state of the models, read tensor by tensor; the names of one of several models begin with its own. Without a group."""
        names = {
            key: ".".join(map(str, path[1:])) for key, path in self._paths.items() if path[0] in ("model", "models")
        }
        tensors = {key: name for key, name in names.items() if hasattr(self._entries[key], "size")}
        if not (self.folder / INDEX).exists():
            tensors = {}  # an older version pickled them
        chosen = {key: self._paths[key] for key in names if key not in tensors}
        state: dict[str, Any] = {}
        for key, path in chosen.items():
            put(state, path, self._template(key))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            self.read(state)
        values = {names[key]: got(state, path) for key, path in chosen.items()}
        return tensor_files.of_checkpoint(self.folder, self._metadata, tensors, values)

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
        self._add_groups(path, optimizer, parameters)
        found: dict[str, Any] = {"state": {}, "param_groups": [{} for _ in optimizer.param_groups]}
        wanted = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        own = {name for name, parameter in parameters.items() if id(parameter) in wanted}
        orders = self._json(layouts.SECTION, path[1] if path[1:] else ONLY)
        for key, entry_path in self._paths.items():
            if entry_path[: len(path)] != path:
                continue
            kind, *rest = entry_path[len(path) :]
            if kind == optimizer_state.GROUPS:
                self._into_group(found[kind], key, rest, optimizer)
                continue
            if kind in (optimizer_state.OWN, optimizer_state.MORE):
                put(found.setdefault(kind, {}), rest, self._template(key))
                continue
            name, *inner = rest
            if name not in own:
                raise self.refused(f"has state of the optimizer for {name}, which this optimizer does not train")
            value = self._template(key, parameters[name])
            order = None if orders is None else orders.get(layouts.place(rest))
            if orders is not None and hasattr(value, "stride") and (order or not hasattr(value, "to_local")):
                value = layouts.empty(value.shape, order, value.dtype, value.device)
            put(found["state"].setdefault(name, {}), inner, value)
        return found

    def _add_groups(self, path: tuple[str, ...], optimizer: Any, parameters: dict[str, Any]) -> None:
        """Collective. Add the groups that were added while the run trained, with the parameters they had."""
        here, trained = len(path) + 1, len(optimizer.param_groups)
        inside = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        numbers = {int(one[here]) for one in self._paths.values() if one[:here] == (*path, optimizer_state.GROUPS)}
        if max(numbers, default=-1) < trained:
            return
        state: dict[str, Any] = {}
        for number in sorted(numbers):
            put(state, (*path, optimizer_state.GROUPS, number, "params"), None)
        self.read(state)
        for group in got(state, (*path, optimizer_state.GROUPS))[trained:]:
            chosen = [parameters.get(name) for name in group["params"]]
            if any(one is None or id(one) in inside for one in chosen):
                raise self.refused(f"has state of an optimizer with more than the {trained} groups of this one")
            optimizer.add_param_group({"params": chosen})

    def _into_group(self, groups: list[dict[str, Any]], entry: str, rest: list[Any], optimizer: Any) -> None:
        number, key = int(rest[0]), str(rest[1])
        own = optimizer.param_groups[number]
        if key not in own and (lacking := own.keys() - self._group_keys(entry, key)):
            # Another optimizer's; otherwise it was added by a scheduler or by the user's code.
            kind = type(optimizer).__name__
            raise self.refused(
                f"has state of another optimizer ('{key}' in group {number}), which {kind} does not know; it lacks '{min(lacking)}'"
            )
        put(groups[number], rest[1:], self._template(entry))

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


def _edited(now: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each group, the settings that the user's code makes otherwise than when the run began."""
    return [
        {key: plain_values.decoded(value) for key, value in new.items() if key in old and old[key] != value}
        for new, old in zip(now, before, strict=False)
    ]


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
