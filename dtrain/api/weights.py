"""Weights of a framework outside of a training: read from checkpoints and files, put into a model, written for other
programs.

One class for each framework, found through the entry points `dtrain.frameworks`; its module imports the framework in functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dtrain.api.exporter import Inference
from dtrain.common.errors import UserError
from dtrain.common.lazy_dataclass import dataclass

Weights = Mapping[str, Any]
"""Name → tensor: of PyTorch as in a state dict, a numpy array otherwise."""
Shape = tuple[int, ...]
DeviceMap = str | int | Mapping[str, Any]
"""A device, or name of a module → device."""
MOST_SHOWN = 100
HINT = "Give the model that was trained, or have only what fits loaded: strict=False, in a recipe init_from: {source: …, strict: false}."
FOLDER = "/"
"""The ending of a folder, where others have `.safetensors`."""


@dataclass(frozen=True)
class Unmatched:
    """How the weights of a source and of a model differ, by name."""

    missing: tuple[str, ...]
    """Names in the model that the source lacks."""
    unexpected: tuple[str, ...]
    """Names in the source that the model lacks."""
    reshaped: tuple[tuple[str, Shape, Shape], ...]
    """Name, shape in the source and shape in the model, where they differ."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def lines(self) -> list[str]:
        """Format all differences, one a line."""
        found = [f"{name}: {there} in the source, {here} in the model" for name, there, here in self.reshaped]
        found += [f"{name}: in the model only" for name in self.missing]
        found += [f"{name}: in the source only" for name in self.unexpected]
        return found[:MOST_SHOWN] + ([f"and {len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else [])

    def told(self) -> str:
        """Format what was left out as one sentence for a warning."""
        told = (
            ("not in the source, so that the model kept its own", self.missing),
            ("of another shape in the source, so that the model kept its own", [name for name, _, _ in self.reshaped]),
            ("in the source only, and not used", self.unexpected),
        )
        return "; ".join(f"{text}: {_listed(names)}" for text, names in told if names)

    def refuse(self, source: str, model: str, hint: str) -> None:
        """Raise `UserError` that lists all of them, if there are any."""
        if self:
            raise UserError(f"{source} does not fit {model}:\n  " + ";\n  ".join(self.lines()) + ".", hint)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def compared(there: Mapping[str, Shape], here: Mapping[str, Shape], tied: Sequence[Collection[str]] = ()) -> Unmatched:
    """The differences of the named shapes of a source and of a model; `tied` are names of the model that are one tensor, of which the
    source needs one."""
    known = set(there).union(*(names for names in tied if not there.keys().isdisjoint(names)))
    return Unmatched(
        tuple(name for name in here if name not in known),
        tuple(name for name in there if name not in here),
        tuple((name, there[name], here[name]) for name in here if name in there and there[name] != here[name]),
    )


ReadWeights = Callable[[type["Framework"], Callable[[], Any]], Weights]
"""From a framework, and a function that builds a model of the shape that is to get them, to the weights of a source; waits."""


class Framework(Protocol):
    """The weights of one framework."""

    framework: ClassVar[str]
    """Importable module that everything here needs; also the name of dtrain's extra."""
    written: ClassVar[Mapping[str, str]]
    """Ending of what `write` makes (`.safetensors`, or `/` for a folder) → what that is, in a few words."""

    @staticmethod
    def wrote(files: Collection[str]) -> bool:
        """Pure. Whether a checkpoint with files of these names is this framework's."""

    @staticmethod
    def read(folder: Path) -> Weights:
        """The model's weights in a checkpoint's folder; they may be read from it when they are asked for."""

    @staticmethod
    def read_file(path: Path, model: Callable[[], Any]) -> Weights:
        """The weights in a file, or a folder, of the framework's world, by the names that `shapes` has of the model that is built by
        `model`; runs nothing that stands in it. Raises `UserError` if it is none."""

    @staticmethod
    def shapes(model: Any) -> dict[str, Shape]:
        """Name → shape of each of a model's weights; raises `UserError` if it is no model of this framework."""

    @staticmethod
    def load_into(
        model: Any, weights: Weights, *, strict: bool, source: str, device_map: DeviceMap | None = None
    ) -> Unmatched:
        """Put weights into a model (or a dict of several) in place, with a `device_map` as new tensors on its devices. Raises `UserError`
        that lists every difference, unless not `strict`: then what fits is loaded, and the rest returned."""

    @staticmethod
    def build(task: Any, name: str, *, empty: bool = False) -> Any:
        """The model of a task (or the dict of several) on the CPU, not trained; `empty`: for `write`, if it can be without memory for its
        weights."""

    @staticmethod
    def inference(model: Any) -> Inference:
        """A model of `build`, one of several, for use outside of a training."""

    @staticmethod
    def write(
        path: Path, weights: Weights, model: Any, metadata: Mapping[str, str], source: str = "the weights"
    ) -> list[str]:
        """Write weights to a new file or folder, by its ending; `model` is the task's, of `build` with `empty`, if that needs it
        (`needs_model`), else None. Returns what was left out, each in a sentence. Raises `UserError` if the weights of this `source` do not
        fit the model."""

    @staticmethod
    def needs_model(ending: str) -> bool:
        """Pure. Whether `write` needs the task's model for this ending."""
