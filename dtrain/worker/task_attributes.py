"""A task's attributes that change while it trains, in the checkpoints: a counter, a running mean, a queue, a generator, an average of
the weights that `train_step` keeps."""

from __future__ import annotations

import json
import random
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np

from dtrain.common import plain_values
from dtrain.worker.trainer import Trainer

NAME = "dtrain_task"
"""Name under which they are registered."""
MOST_OWN_BYTES = 1024
"""Text of a value, as JSON, up to which each rank's own is kept if they differ."""
MOST_PARTS = 10_000
"""Of a container; one that has more holds data."""
SAMPLED = 4096
"""Elements of a large array by which a change of it is noticed."""
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def owners_of(code: Any) -> dict[str, Any]:
    """Whose attributes are looked at for a task or a function, by how messages begin that name one."""
    made = {} if callable(code) and hasattr(code, "__name__") else {"": code, "class attribute ": type(code)}
    module = sys.modules.get(getattr(code, "__module__", ""))
    return made | ({"global ": module} if module else {})


class TaskAttributes:
    """The attributes of a task and its class, and the globals of its file, that are not what they were before the first step. Kept are plain
    values, arrays, tensors without gradients, containers of these, generators, and objects with `state_dict` and `load_state_dict`, or with
    variables of TensorFlow, other than optimizers and what is trained."""

    def __init__(self, owners: Mapping[str, Any], name: str, trained: Any, trainer: Trainer) -> None:
        """Collective, once a checkpoint was loaded."""
        models = trained.values() if isinstance(trained, dict) else [trained]
        self._trained = {
            id(part) for model in models for part in [*getattr(model, "modules", list)(), *_variables(model)]
        }
        self._owners, self._name, self._trainer = owners, name, trainer
        self._mean: Callable[[Mapping[str, float]], dict[str, float]] = trainer.backend.mean
        self._begun = {name: signature for name, (_, signature) in self._states()}
        self._active: bool | None = None
        self._same: dict[str, dict[str, Any]] = {}
        self._own: dict[str, list[str]] = {}
        self._kept: set[str] = set()
        self._told: set[str] = set()
        trainer.keep(NAME, self)
        trainer.writer.memory.preparing.append(self.gather)

    def gather(self, *, to_disk: bool) -> None:
        """Collective. Find the attributes that differ between the ranks, and take each rank's value of those that are small. Whether any
        attribute changes at all is asked before the first snapshot of an attempt, and before each for the disk."""
        if self._active is False and not to_disk:
            return
        states = dict(self._states())
        changed = {name: found for name, found in states.items() if self._begun.get(name) != found[1]}
        self._leave_out(
            (self._kept - states.keys()) & {name for name, _ in self._values()},
            f"has more than {MOST_PARTS:,} parts, or others than plain values,",
        )
        self._kept |= changed.keys()
        if self._active is None or to_disk:
            self._active = self._mean({"changed": float(bool(changed))})["changed"] > 0
        if not self._active:
            self._same, self._own = {}, {}
            return
        means = self._mean({name: float(signature) for name, (_, signature) in changed.items()})
        differs = self._mean(
            {name: float(name not in changed or mean != changed[name][1]) for name, mean in means.items()}
        )
        names = sorted(name for name, share in differs.items() if share)
        texts = {name: _text(changed[name][0]) if name in changed else "" for name in names}
        found = self._texts(texts) if names else []
        self._own = {name: [one[name] for one in found] for name in names if all(one.get(name) for one in found)}
        self._same = {name: state for name, (state, _) in changed.items() if name not in names}
        self._leave_out({*names} - self._own.keys(), "differs between the ranks, with more than a small value on each,")

    def _texts(self, own: Mapping[str, str]) -> list[dict[str, str]]:
        """Collective. These texts of every rank; each travels as numbers of 6 bytes."""
        rank, ranks = self._trainer.rank, self._trainer.world_size
        numbers = {
            f"{rank:06}.{place:06}.{name}": float(int.from_bytes(part, "big"))
            for name, text in own.items()
            for place, part in enumerate(re.findall(b".{1,6}", text.encode()))
        }
        found: list[dict[str, bytes]] = [{} for _ in range(ranks)]
        for key, number in sorted(self._mean(numbers).items()):
            rank, _, name = int(key[:6]), key[7:13], key[14:]
            found[rank][name] = found[rank].get(name, b"") + int(number).to_bytes(6, "big").lstrip(b"\0")
        return [{name: content.decode() for name, content in one.items()} for one in found]

    def _leave_out(self, names: set[str], why: str) -> None:
        for name in sorted(names - self._told):
            self._trainer.warn(f"{self._name}: {name} {why} and is in no checkpoint: after a restart it begins anew")
        self._told |= names

    def state_dict(self) -> dict[str, Any]:
        """Return what was found to change, for a checkpoint."""
        return {"same": self._same, "own": self._own} if self._same or self._own else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the task what it had; values of each rank's own only at the same number of workers."""
        own = state.get("own", {})
        fits = all(len(texts) == self._trainer.world_size for texts in own.values())
        if not fits:
            self._trainer.warn(
                f"{self._name}: {', '.join(own)} differed between the workers, whose number has changed, and begin anew"
            )
        mine = {
            name: plain_values.decoded(json.loads(texts[self._trainer.rank])) for name, texts in own.items() if fits
        }
        for name, found in (state.get("same", {}) | mine).items():
            self._give(name, **found)

    def _give(self, name: str, state: Any, device: str | None = None) -> None:
        prefix = max((one for one in self._owners if name.startswith(one)), key=len)
        owner, attribute = self._owners[prefix], name.removeprefix(prefix)
        now = getattr(owner, attribute, None)
        if device is not None:
            state = _on(device, state)
            if not _filled(now, state):
                setattr(owner, attribute, state)
        elif ways := _ways(now):
            ways[1](state)
        else:
            self._trainer.warn(
                f"{self._name}: {name} is made while it trains, and begins anew: make it before the first step"
            )

    def _states(self) -> Iterator[tuple[str, tuple[dict[str, Any], int]]]:
        """Name, state and signature of each attribute that can be kept as it is now."""
        for name, value in self._values():
            with suppress(Exception):  # the user's, or another thread changes it
                if (state := self._state(value)) is not None:
                    yield name, (state, _signature(state))

    def _values(self) -> Iterator[tuple[str, Any]]:
        for prefix, owner in self._owners.items():
            for name, value in list(getattr(owner, "__dict__", {}).items()):
                if not name.startswith("__") and not isinstance(value, type | ModuleType):
                    yield f"{prefix}{name}", value

    def _state(self, value: Any) -> dict[str, Any] | None:
        """Return what `_give` takes; None for what is not kept."""
        if ways := _ways(value):
            parts = {id(part) for part in [value, *getattr(value, "modules", list)(), *_variables(value)]}
            trains = hasattr(value, "param_groups") or hasattr(value, "apply_gradients") or parts & self._trained
            state = None if trains else ways[0]()
            return {"state": state} if state is not None and _is_plain(state) else None
        if not _is_plain(value):
            return None
        devices = [str(leaf.device.type) for leaf in _leaves(value) if hasattr(leaf, "device") and hasattr(leaf, "to")]
        return {"state": value, "device": devices[0] if devices else ""}


def _ways(value: Any) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """Return how an object gives its state, and how it takes it; None for a plain value."""
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if isinstance(value, np.random.Generator):
        generator = value.bit_generator
        return lambda: generator.state, partial(setattr, generator, "state")
    if hasattr(value, "get_state") and hasattr(value, "set_state"):
        return value.get_state, value.set_state
    if variables := _variables(value):
        return lambda: [np.asarray(one.numpy()) for one in variables], partial(_assign, variables)
    if callable(getattr(value, "load_state_dict", None)):
        return value.state_dict, value.load_state_dict
    return None


def _assign(variables: Sequence[Any], contents: Sequence[Any]) -> None:
    for variable, content in zip(variables, contents, strict=True):
        variable.assign(content)


def _variables(value: Any) -> list[Any]:
    """A variable of TensorFlow or Keras, or those of a metric, a layer or a generator of seeds."""
    found = (
        [value] if hasattr(value, "assign") else getattr(value, "variables", None) or [getattr(value, "state", None)]
    )
    return [one for one in found if hasattr(one, "assign") and hasattr(one, "numpy")] if isinstance(found, list) else []


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _is_plain(value: Any) -> bool:
    leaves = list(islice(_leaves(value), MOST_PARTS + 1))
    return len(leaves) <= MOST_PARTS and all(
        isinstance(leaf, PLAIN) or (hasattr(leaf, "dtype") and not _is_variable(leaf)) for leaf in leaves
    )


def _is_variable(leaf: Any) -> bool:
    return bool(getattr(leaf, "requires_grad", False)) or hasattr(leaf, "assign")


def _signature(state: Any) -> int:
    """The checksum of a state, of large arrays by some of their elements."""
    found = 0
    for leaf in _leaves(state):
        if hasattr(leaf, "dtype"):
            local = leaf.to_local() if hasattr(leaf, "to_local") else leaf
            flat = local.reshape(-1)
            leaf = plain_values.encoded(flat[:: max(1, len(flat) // SAMPLED)])
        found = zlib.crc32(repr(leaf).encode(), found)
    return found


def _text(state: dict[str, Any]) -> str:
    """A small value as JSON; '' for others."""
    if "device" not in state or sum(getattr(leaf, "nbytes", 8) for leaf in _leaves(state["state"])) > MOST_OWN_BYTES:
        return ""
    text = json.dumps(plain_values.encoded(state))
    return text if len(text) <= MOST_OWN_BYTES else ""


def _on(device: str, value: Any) -> Any:
    """The value with its tensors on a device."""
    if isinstance(value, Mapping):
        return type(value)({key: _on(device, part) for key, part in value.items()})  # type: ignore[call-arg]
    if type(value) in (list, tuple):
        return type(value)(_on(device, part) for part in value)
    return value.to(device) if device not in ("", "cpu") and hasattr(value, "to") else value


def _filled(now: Any, state: Any) -> bool:
    """Whether a container could be given its content in place: others may have hold of it."""
    if type(now) is not type(state):
        return False
    if isinstance(now, list):
        now[:] = state
    elif isinstance(now, dict | set):
        now.clear()
        now.update(state)
    elif isinstance(now, deque):
        now.clear()
        now.extend(state)
    else:
        return False
    return True
