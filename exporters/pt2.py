"""`torch.export`: PyTorch's own form of a graph, for Python and C++ with libtorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from dtrain.api.exporter import Tolerance, TrainedModel

from .options import NoOptions
from .torch_export import program_of


class TorchExport:
    """torch.export: a graph of ATen operators in a .pt2 file, for torch.export.load and C++"""

    Options = NoOptions
    frameworks = ("torch",)
    ending = ".pt2"
    runtime = "dtrain.exporters.runtimes.pt2"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance = Tolerance(1e-5, 1e-5)

    def __init__(self, options: NoOptions) -> None:
        pass

    def export(self, trained: TrainedModel, path: Path) -> None:
        import torch

        torch.export.save(program_of(trained), path, extra_files={"dtrain.json": json.dumps(dict(trained.metadata))})
