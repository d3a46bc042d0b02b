"""Safetensors: the weights alone, for the model's own code."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from dtrain.api.exporter import Tolerance, TrainedModel

from .options import NoOptions


class Safetensors:
    """The weights alone, for the model's own code, in PyTorch's names"""

    Options = NoOptions
    frameworks = ("torch", "tensorflow")
    ending = ".safetensors"
    runtime = ""
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance = Tolerance(1e-6, 1e-6)

    def __init__(self, options: NoOptions) -> None:
        pass

    def export(self, trained: TrainedModel, path: Path) -> None:
        trained.write_weights(path)
