"""Exporters: a trained model in the form that another runtime takes. `dtrain export` runs them in a process of its own.

What an exporter writes is believed only when its runtime, in a fresh process, gave the same outputs as the trained model did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dtrain.common.errors import DtrainError, Exit
from dtrain.common.lazy_dataclass import dataclass

Arrays = list[Any]
"""numpy arrays, in the order of a signature."""


class ExportError(DtrainError):
    """A model cannot be had in this form; the message names the operator or the line, the hint what else would work."""

    exit_code = Exit.USER_CODE


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output of a model."""

    name: str
    dtype: str
    """The numpy name of the type."""
    shape: tuple[int | None, ...]
    """None: any size."""

    def told(self) -> str:
        """Format for people: `image float32 (any, 1, 8, 8)`."""
        return f"{self.name} {self.dtype} ({', '.join('any' if size is None else str(size) for size in self.shape)})"


@dataclass(frozen=True)
class Tolerance:
    """How far two outputs may differ to count as equal: `absolute`, and `relative` times the largest value of the output."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in inference mode on the CPU, as an exporter gets it."""

    framework: str
    model: Any
    """The model as the task made it."""
    function: Any
    """A function from the input tensors, in the order of `inputs`, to a tuple of output tensors: a module of
    PyTorch, or a `tf.function` with a signature."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays
    """A batch of inputs."""
    write_weights: Callable[[Path], object]
    """Write its weights alone to a new file, in a form that follows from the ending (`.safetensors`)."""
    metadata: Mapping[str, str]
    """For the file, if its form has a place for it: run, step and digest of the weights."""
    notes: list[str]
    """Notes for the user; an exporter may add to them."""


class Exporter(Protocol):
    """One form of a model, constructed with its options; it imports what it needs in `export`, not with its module."""

    Options: ClassVar[type]
    """Frozen dataclass of this exporter's own options (`dtrain export --set opset=18`)."""
    frameworks: ClassVar[tuple[str, ...]]
    """Frameworks whose models it takes, each an importable module."""
    ending: ClassVar[str]
    """Ending of the file that it writes (`.onnx`); '/' for a folder."""
    runtime: ClassVar[str]
    """An importable module that runs what was written, with `load(path)` as in `Runtime`, which imports nothing of dtrain: layouts
    copy it. '': the form holds weights alone, for the task's own model."""
    packages: ClassVar[tuple[str, ...]]
    """Modules besides the framework that take part in writing it, whose versions are recorded."""
    tolerance: ClassVar[Tolerance]
    """Tolerance of the outputs of `runtime`."""

    def export(self, trained: TrainedModel, path: Path) -> None:
        """Write the model to this new path; may write further files beside it, whose names begin with the path's. Raises `ExportError`."""


Run = Callable[[Arrays], Arrays]
"""A function from the inputs of a batch to its outputs."""


class Runtime(Protocol):
    """The functions of a module named by `Exporter.runtime`."""

    def load(self, path: str) -> Run:
        """Load an exported model."""

    def versions(self) -> dict[str, str]:
        """Of the packages that run it."""


@dataclass(frozen=True)
class Call:
    """How a task called its model, and what that gave."""

    inputs: tuple[tuple[str, Any], ...]
    """Name and numpy array of each tensor among the arguments."""
    outputs: Arrays
    form: Any
    """The framework's own: everything else about the arguments."""
    note: str = ""
    """A remark for the user."""


def specs_of(calls: Sequence[Call], names: Sequence[str]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a model from several calls; a dimension whose size was not always the same is free."""
    inputs = [[array for _, array in call.inputs] for call in calls]
    outputs = [call.outputs for call in calls]
    return (
        tuple(_spec(name, [arrays[place] for arrays in inputs]) for place, (name, _) in enumerate(calls[0].inputs)),
        tuple(_spec(name, [arrays[place] for arrays in outputs]) for place, name in enumerate(names)),
    )


def _spec(name: str, arrays: Sequence[Any]) -> TensorSpec:
    sizes = [{array.shape[axis] for array in arrays} for axis in range(arrays[0].ndim)]
    shape = tuple(next(iter(found)) if len(found) == 1 else None for found in sizes)
    return TensorSpec(name, arrays[0].dtype.name, shape)


class Inference(Protocol):
    """A trained model that is used outside of a training, in the terms of numpy."""

    @property
    def model(self) -> Any:
        """Return the object that a task's methods get as the model."""

    def batch(self, batch: Any) -> Any:
        """A batch of data as a task's methods get it in a training."""

    def record(self, use: Callable[[], Any], only: Sequence[str] = ()) -> Call:
        """How `use` calls the model first; with `only`, as if it had been given the arguments of these names alone. Raises `ExportError`
        if it does not call it."""

    def called(self, example: Any) -> Call:
        """A call with these arguments: a tensor or array, a tuple of positional arguments, or a dict of named ones."""

    def function(self, call: Call, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Any:
        pass

    def outputs_of(self, call: Call) -> tuple[str, ...]:
        """Return the names of the outputs."""

    def run(self, call: Call, inputs: Arrays) -> Arrays:
        """Run the model on other inputs of the same kind."""

    def metrics(self, use: Callable[[], Any], call: Call, outputs: Arrays) -> dict[str, float] | None:
        """Return the numbers of `use` if its one call of the model gives these outputs; None if it does more with
        the model than this call."""


@dataclass(frozen=True)
class Exported:
    """A verified model, for a layout."""

    name: str
    path: Path
    """The file or folder."""
    format: str
    runtime: str
    """Module as in `Exporter.runtime`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Layout(Protocol):
    """The folder that a server wants, around an exported model."""

    formats: ClassVar[tuple[str, ...]]
    """Names of the exporters whose models it serves."""
    default: ClassVar[Mapping[str, str]]
    """Framework → the exporter that is taken if none is named."""

    @staticmethod
    def write(exported: Exported, folder: Path, version: int) -> list[str]:
        """Fill a new folder, moving the model into it. Returns lines that say how to serve it."""
