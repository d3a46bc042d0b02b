"""TensorFlow checkpoints: plain arrays in a safetensors file, whatever strategy and number of replicas made them.

Importing this module imports no framework; every function that needs TensorFlow imports it.
"""

from __future__ import annotations

import copy
import json
import mmap
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.api.in_memory import SnapshotPart
from dtrain.api.training_backend import NonFiniteWeights, Snapshot, SnapshotFiles
from dtrain.checkpoint.file_writer import FileWriter, WeightsRange
from dtrain.checkpoint.kept_buffer import KeptBuffer, KeptBuffers
from dtrain.checkpoint.tensor_file import DTYPES, SUFFIX, TensorEntry, entries_of, laid_out
from dtrain.common import plain_values
from dtrain.common.errors import CheckpointError, UserError
from dtrain.common.files import hashed

from .. import torch_values as torch_values
from .. import unpickling

STATE = f"state{SUFFIX}"
REGISTERED = "registered.json"
PICKLED = "registered.pickle"
"""Older versions wrote it instead."""
FORMAT = 1
NAMES = {short: name for name, short in DTYPES.items()}
Arrays = dict[str, Any]
"""Name → numpy array."""


def keyed(variables: Sequence[Any]) -> dict[str, Any]:
    """Keras variables by their place and their own name; their layer's is not the same in every process."""
    return {f"{number:05d}.{variable.name}": variable for number, variable in enumerate(variables)}


class Snapshots:
    """Takes snapshots of one training, in one process for all."""

    def __init__(self) -> None:
        self._writer = FileWriter()
        self._buffers = KeptBuffers(KeptBuffer)

    def take(self, parts: Mapping[str, Arrays], registered: Mapping[str, Any], trained: Container[str]) -> Snapshot:
        """Copy the arrays of these parts; those of the model whose names are in `trained` must be finite."""
        self._writer.start()
        arrays = {f"{part}/{name}": array for part, members in parts.items() for name, array in members.items()}
        file = laid_out(TensorEntry(name, DTYPES[array.dtype.name], array.shape) for name, array in arrays.items())
        buffer = self._buffers.taken(file)
        for entry in file.entries:
            array = arrays[entry.name]
            _array(buffer.memory, entry, array.dtype)[...] = array
        weights = [
            WeightsRange(
                f"{name}|{entry.dtype}|{entry.shape}", entry.begin, entry.length,
                entry.dtype if name.partition(".")[2] in trained else "",
            )
            for entry in file.entries
            for part, _, name in [entry.name.partition("/")]
            if part == "model"
        ]  # fmt: skip
        return TensorFlowSnapshot(buffer, weights, _written(registered) if registered else b"", self._writer)


class NoSnapshot:
    """The snapshot of a process that writes nothing: another one has all of the state."""

    def write(self, folder: Path) -> SnapshotFiles:
        return SnapshotFiles({}, "")

    def memory_part(self) -> None:
        pass


@dataclass(frozen=True)
class TensorFlowSnapshot:
    """A copy of the state in shared memory."""

    buffer: KeptBuffer
    weights: Sequence[WeightsRange]
    registered: bytes
    """States of the registered objects as JSON; empty if there are none."""
    writer: FileWriter

    def write(self, folder: Path) -> SnapshotFiles:
        try:
            written = self.writer.write(self.buffer, folder / STATE, self.weights)
        finally:
            self.buffer.free.set()
        if written.not_finite:
            raise NonFiniteWeights(written.not_finite)
        files = {STATE: (written.size, written.digest)}
        if self.registered:
            (folder / REGISTERED).write_bytes(self.registered)
            files[REGISTERED] = hashed(folder / REGISTERED)
        return SnapshotFiles(files, written.weights)

    def memory_part(self) -> SnapshotPart:
        return SnapshotPart(self.buffer, STATE, self.weights, {REGISTERED: self.registered} if self.registered else {})


class Registered:
    """Objects with a state of their own beside the model, by name."""

    def __init__(self) -> None:
        self._things: dict[str, Any] = {}
        self._folder = ""
        self._stored: dict[str, Any] | None = None

    def states(self) -> dict[str, Any]:
        """Return copies of the generators' states."""
        states = {name: copy.deepcopy(thing.state_dict()) for name, thing in self._things.items()}
        for name, state in states.items():
            plain_values.require_storable(state, f"'{name}'")
        return states

    def load(self, folder: Path) -> None:
        """Give those there are the states they had, and those that come later, too."""
        self._folder, self._stored = folder.name, _registered(folder)
        for name, thing in self._things.items():
            self._give(name, thing)

    def add(self, name: str, thing: Any) -> None:
        """Register one object."""
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


def _written(registered: Mapping[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT, "values": plain_values.encoded(dict(registered))}, allow_nan=False).encode()


def _registered(folder: Path) -> dict[str, Any]:
    """Return the stored states of registered objects; raises `CheckpointError` if they cannot be read."""
    if (folder / PICKLED).exists():
        found: dict[str, Any] = unpickling.loads((folder / PICKLED).read_bytes(), folder)
        return found
    if not (folder / REGISTERED).exists():
        return {}
    try:
        body = json.loads((folder / REGISTERED).read_bytes())
        if body["format"] == FORMAT:
            return dict(plain_values.decoded(body["values"]))
        problem = f"its format is {body['format']}, and this dtrain reads {FORMAT}"
    except plain_values.Unknown as error:
        raise unpickling.refused(folder, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise CheckpointError(
        f"{REGISTERED} of the checkpoint {folder.name} cannot be read: {problem}", "Take another one."
    )


def load(folder: Path, parts: dict[str, Sequence[Any]]) -> None:
    """Assign what a snapshot wrote to these variables; raises `CheckpointError` if it is not theirs."""
    entries = entries_of(folder / STATE)
    with open(folder / STATE, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for part, variables in parts.items():
        stored = sorted((entry for entry in entries if entry.name.startswith(f"{part}/")), key=lambda entry: entry.name)
        if len(stored) != len(variables):
            raise CheckpointError(
                f"the checkpoint {folder.name} has {len(stored)} variables of the {part}, and the {part} has {len(variables)}",
                "Resume with the model and the optimizer that it was made with.",
            )
        for entry, variable in zip(stored, variables, strict=True):
            _assign(_array(memory, entry, NAMES[entry.dtype]), entry.name, variable, folder)


def _array(memory: mmap.mmap, entry: TensorEntry, dtype: Any) -> Any:
    """An entry's array in the memory."""
    import numpy as np

    kind = np.dtype(dtype)
    return np.frombuffer(memory, kind, entry.length // kind.itemsize, entry.begin).reshape(entry.shape)


def _assign(array: Any, key: str, variable: Any, folder: Path) -> None:
    if tuple(array.shape) != tuple(variable.shape):
        raise CheckpointError(
            f"the checkpoint {folder.name} has {key} of shape {tuple(array.shape)}, and {variable.path} has shape "
            f"{tuple(variable.shape)}",
            "Resume with the model and the optimizer that it was made with.",
        )
    variable.value.assign(array)
