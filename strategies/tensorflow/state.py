"""TensorFlow checkpoints: plain arrays in a `tf.train.Checkpoint`, whatever strategy and number of replicas made them.

Importing this module imports no framework; every function that needs TensorFlow imports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dtrain.api.strategy import SnapshotFiles
from dtrain.common.errors import CheckpointError

PREFIX = "state"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
Arrays = dict[str, Any]
"""Name → numpy array."""


def keyed(variables: Sequence[Any]) -> dict[str, Any]:
    """Keras variables by their place and their own name; their layer's is not the same in every process."""
    return {f"{number:05d}.{variable.name}": variable for number, variable in enumerate(variables)}


class TensorFlowSnapshot:
    """A copy of the state, written by one process; `parts` is None in the others."""

    def __init__(self, parts: dict[str, Arrays] | None) -> None:
        self._parts = parts

    def write(self, folder: Path) -> SnapshotFiles:
        """See `Snapshot.write`."""
        import tensorflow as tf

        if self._parts is None:
            return SnapshotFiles((), "")
        with tf.device("CPU:0"):
            shadows = {
                part: {name: tf.Variable(array, trainable=False) for name, array in arrays.items()}
                for part, arrays in self._parts.items()
            }
            tf.train.Checkpoint(**shadows).write(str(folder / PREFIX))
        names = sorted(path.name for path in folder.glob(f"{PREFIX}.*"))
        return SnapshotFiles(tuple(names), digest(self._parts["model"]))


def digest(arrays: Arrays) -> str:
    """Sha256 over names, types, shapes and bytes."""
    import numpy as np

    result = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        result.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        result.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return result.hexdigest()


def load(folder: Path, parts: dict[str, Sequence[Any]]) -> None:
    """Assign what a snapshot wrote to these variables; raises `CheckpointError` where it is not theirs."""
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
