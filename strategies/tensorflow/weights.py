"""Weights of Keras models outside of a training: of checkpoints, of .keras, .weights.h5 and safetensors files.

Importing this module imports no framework.
"""

from __future__ import annotations

import io
import mmap
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from dtrain.api.weights import HINT, DeviceMap, Shape, Unmatched, Weights, compared
from dtrain.checkpoint.tensor_file import DTYPES, SUFFIX, TensorEntry, entries_of, laid_out
from dtrain.common.errors import UserError
from dtrain.job.task_answers import gave

from .inference import KerasInference
from .models import made
from .state import NAMES, STATE, keyed

KERAS = ".keras"
H5 = ".weights.h5"
WEIGHTS_MEMBER = "model.weights.h5"
PART = "model/"
BASE = 100
"""Base whose digits are exact in every type of number."""
NOT_WEIGHTS = ("optimizer/", "compile_config/")
"""Groups of a Keras file beside the model's."""


class KerasWeights:
    """Weights of Keras 3 models, numbered in the order of `model.weights`."""

    framework: ClassVar[str] = "tensorflow"
    written: ClassVar[Mapping[str, str]] = MappingProxyType({
        KERAS: "the whole model, as keras.saving.load_model reads it", H5: "its weights, as model.load_weights reads them",
        SUFFIX: "safetensors, numbered in the order of model.weights",
    })  # fmt: skip

    @staticmethod
    def wrote(files: Collection[str]) -> bool:
        return STATE in files

    @staticmethod
    def read(folder: Path) -> Weights:
        """They have the names `00000.kernel`, `00001.bias` …"""
        return {name.removeprefix(PART): array for name, array in _arrays(folder / STATE) if name.startswith(PART)}

    @staticmethod
    def read_file(path: Path, model: Callable[[], Any]) -> Weights:
        try:
            if path.suffix == SUFFIX:
                return {name.removeprefix(PART): array for name, array in _arrays(path)}
            return _by_number(_of_h5(path), model())
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} holds no weights that can be read: {error}",
                "Give a .keras or .weights.h5 file of Keras 3, or a .safetensors file of 'dtrain weights'.",
            ) from None

    @staticmethod
    def shapes(model: Any) -> dict[str, Shape]:
        _check(model)
        return {name: tuple(variable.shape) for name, variable in keyed(model.weights).items()}

    @staticmethod
    def load_into(
        model: Any, weights: Weights, *, strict: bool, source: str, device_map: DeviceMap | None = None
    ) -> Unmatched:
        if device_map is not None:
            raise UserError(
                "device_map is for modules of PyTorch: Keras places a model's variables itself", "Leave it out."
            )
        here = KerasWeights.shapes(model)
        there = {name: tuple(array.shape) for name, array in weights.items()}
        found = compared(there, here)
        if strict:
            found.refuse(source, "the model", HINT)
        for name, variable in keyed(model.weights).items():
            if there.get(name) == here[name]:
                variable.value.assign(weights[name])
        return found

    @staticmethod
    def build(task: Any, name: str, *, empty: bool = False) -> Any:
        return made(task, name)

    @staticmethod
    def inference(model: Any) -> KerasInference:
        return KerasInference(model)

    @staticmethod
    def needs_model(ending: str) -> bool:
        return ending != SUFFIX

    @staticmethod
    def write(
        path: Path, weights: Weights, model: Any, metadata: Mapping[str, str], source: str = "the weights"
    ) -> list[str]:
        if model is None:
            _write_arrays(path, weights, metadata)
            return []
        KerasWeights.load_into(model, weights, strict=True, source=source)
        if path.name.endswith(H5):
            model.save_weights(path)
        else:
            model.save(path)
        return []


def _check(model: Any) -> None:
    import keras

    if not isinstance(model, keras.Layer):
        raise UserError(f"these are weights of Keras, and the model is {gave(model)}, no keras.Model")
    if not model.built:
        raise UserError(
            f"the model {model.name!r} has no weights yet",
            "Begin it with keras.Input(shape), build it, or call it once on a batch.",
        )


def _arrays(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and a copy of each array in a file of tensors."""
    import numpy as np

    entries = entries_of(path)
    if any(entry.dtype in ("BF16", "F8_E5M2", "F8_E4M3") for entry in entries):
        import ml_dtypes  # noqa: F401  numpy knows these types by it
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        for entry in sorted(entries, key=lambda entry: entry.name):
            content = bytearray(memory[entry.begin : entry.begin + entry.length])
            yield entry.name, np.frombuffer(content, NAMES[entry.dtype]).reshape(entry.shape)


def _write_arrays(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    import numpy as np

    layout = laid_out((TensorEntry(name, DTYPES[one.dtype.name], one.shape) for name, one in arrays.items()), metadata)
    with open(path, "wb") as file:
        file.write(layout.header)
        for entry in layout.entries:
            file.write(np.ascontiguousarray(arrays[entry.name]).tobytes())


def _of_h5(path: Path) -> dict[str, Any]:
    """Path in the file → array, of the weights of a file that Keras saved."""
    import h5py

    if path.suffix == KERAS:
        with zipfile.ZipFile(path) as archive:
            source: Any = io.BytesIO(archive.read(WEIGHTS_MEMBER))
    elif path.name.endswith(H5):
        source = path
    else:
        raise ValueError(f"its name ends with none of {KERAS}, {H5} and {SUFFIX}")
    found: dict[str, Any] = {}

    def keep(name: str, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset) and not name.startswith(NOT_WEIGHTS):
            found[name] = thing[...]

    with h5py.File(source, "r") as file:
        file.visititems(keep)
    return found


def _by_number(stored: Mapping[str, Any], model: Any) -> Weights:
    """Arrays by the names of the model's weights, if Keras would save them under the same path; by their path otherwise."""
    names = list(KerasWeights.shapes(model))
    own = _paths(model)
    return {names[own[path]] if path in own else path: array for path, array in stored.items()}


def _paths(model: Any) -> dict[str, int]:
    """Path in a file of the model's weights → the number of the weight. A file shows it in which each weight is full of a digit of its
    number."""
    import numpy as np

    before, numbers, place = model.get_weights(), dict[str, int](), 1
    try:
        while place <= len(before):
            for number, variable in enumerate(model.weights):
                variable.assign(np.full(variable.shape, number // place % BASE, before[number].dtype))
            with tempfile.TemporaryDirectory() as folder:
                model.save_weights(Path(folder) / f"own{H5}")
                for path, array in _of_h5(Path(folder) / f"own{H5}").items():
                    if array.size:
                        numbers[path] = numbers.get(path, 0) + int(array.flat[0]) * place
            place *= BASE
    finally:
        model.set_weights(before)
    return numbers
