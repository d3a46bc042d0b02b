"""TensorFlow checkpoints: plain arrays in a `tf.train.Checkpoint`, whatever strategy and number of replicas made them.

Importing this module imports no framework; every function that needs TensorFlow imports it.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dtrain.api.strategy import NonFiniteWeights, SnapshotFiles
from dtrain.common.errors import CheckpointError, UserError
from dtrain.common.files import digest as hash_of
from dtrain.common.files import hashed

from .. import unpickling

PREFIX = "state"
REGISTERED = "registered.pickle"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
Arrays = dict[str, Any]
"""Name → numpy array."""


def keyed(variables: Sequence[Any]) -> dict[str, Any]:
    """Keras variables by their place and their own name; their layer's is not the same in every process."""
    return {f"{number:05d}.{variable.name}": variable for number, variable in enumerate(variables)}


class TensorFlowSnapshot:
    """A copy of the state, written by one process; `parts` is None in the others."""

    def __init__(
        self,
        parts: dict[str, Arrays] | None,
        registered: Mapping[str, Any] = MappingProxyType({}),
        trained: Container[str] = (),
    ) -> None:
        self._parts = parts
        self._registered = registered
        self._trained = trained

    def write(self, folder: Path) -> SnapshotFiles:
        """See `Snapshot.write`."""
        import tensorflow as tf

        if self._parts is None:
            return SnapshotFiles({}, "")
        self._check_finite(self._parts["model"])
        with tf.device("CPU:0"):
            shadows = {
                part: {name: tf.Variable(array, trainable=False) for name, array in arrays.items()}
                for part, arrays in self._parts.items()
            }
            tf.train.Checkpoint(**shadows).write(str(folder / PREFIX))
        names = sorted(path.name for path in folder.glob(f"{PREFIX}.*"))
        if self._registered:
            (folder / REGISTERED).write_bytes(pickle.dumps(self._registered))
            names.append(REGISTERED)
        return SnapshotFiles({name: hashed(folder / name) for name in names}, digest(self._parts["model"]))

    def _check_finite(self, model: Arrays) -> None:
        import numpy as np

        for name, array in model.items():
            if name.partition(".")[2] in self._trained and not np.isfinite(np.asarray(array, np.float32)).all():
                raise NonFiniteWeights(f"{name} has values that are nan or inf")


class Registered:
    """Objects with a state of their own beside the model, by name."""

    def __init__(self) -> None:
        self._things: dict[str, Any] = {}
        self._folder = ""
        self._stored: dict[str, Any] | None = None

    def states(self) -> dict[str, Any]:
        """Copies of their states."""
        states = {name: copy.deepcopy(thing.state_dict()) for name, thing in self._things.items()}
        for name, state in states.items():
            unpickling.require_loadable(state, f"'{name}'")
        return states

    def load(self, folder: Path) -> None:
        """Give those there are the states they had, and those that come later, too."""
        path = folder / REGISTERED
        self._folder, self._stored = folder.name, unpickling.loads(path.read_bytes(), folder) if path.exists() else {}
        for name, thing in self._things.items():
            self._give(name, thing)

    def add(self, name: str, thing: Any) -> None:
        """One more."""
        if self._things.setdefault(name, thing) is not thing:
            raise UserError(f"two things are registered as {name!r}")
        if self._stored is not None:
            self._give(name, thing)

    def unclaimed(self) -> list[str]:
        """Names that are stored and that nothing was registered under."""
        return [name for name in self._stored or {} if name not in self._things]

    def _give(self, name: str, thing: Any) -> None:
        assert self._stored is not None, "a checkpoint was loaded"
        if name not in self._stored:
            raise CheckpointError(
                f"the checkpoint {self._folder} has no state of '{name}', which this run registers",
                "Resume with what it was made with, or begin a new run.",
            )
        thing.load_state_dict(self._stored[name])


def digest(arrays: Arrays) -> str:
    """Over names, types, shapes and bytes."""
    import numpy as np

    result = hash_of()
    for name in sorted(arrays):
        array = arrays[name]
        result.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        result.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return str(result.hexdigest())


def load(folder: Path, parts: dict[str, Sequence[Any]]) -> None:
    """Assign what a snapshot wrote to these variables; raises `CheckpointError` if it is not theirs."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / PREFIX))
    for part, variables in parts.items():
        stored = sorted(
            key for key in reader.get_variable_to_shape_map() if key.startswith(f"{part}/") and key.endswith(SUFFIX)
        )
        if len(stored) != len(variables):
            raise CheckpointError(
                f"the checkpoint {folder.name} has {len(stored)} variables of the {part}, and the {part} has {len(variables)}",
                "Resume with the model and the optimizer that it was made with.",
            )
        for key, variable in zip(stored, variables, strict=True):
            _assign(reader.get_tensor(key), key.removesuffix(SUFFIX), variable, folder)


def _assign(array: Any, key: str, variable: Any, folder: Path) -> None:
    if tuple(array.shape) != tuple(variable.shape):
        raise CheckpointError(
            f"the checkpoint {folder.name} has {key} of shape {tuple(array.shape)}, and {variable.path} has shape "
            f"{tuple(variable.shape)}",
            "Resume with the model and the optimizer that it was made with.",
        )
    variable.value.assign(array)
