"""Somebody else's exporter: the weights of a model of linear layers and ReLU, which may be made wrong on the way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.api.exporter import Tolerance, TrainedModel


@dataclass(frozen=True)
class ElsewhereOptions:
    """Options after `--set`."""

    add: float = 0.0
    """To every weight."""


class Elsewhere:
    """Matrices in an .npz file"""

    Options = ElsewhereOptions
    frameworks = ("torch",)
    ending = ".npz"
    runtime = "elsewhere_runtime"
    packages: tuple[str, ...] = ()
    tolerance = Tolerance(1e-5, 1e-5)

    def __init__(self, options: ElsewhereOptions) -> None:
        self.options = options

    def export(self, trained: TrainedModel, path: Path) -> None:
        import numpy as np

        arrays: dict[str, Any] = {
            name: value.numpy() + self.options.add for name, value in trained.model.state_dict().items()
        }
        np.savez(path, **arrays)
