"""TorchScript, for what still reads it: deprecated by PyTorch, which says so at every use."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, ClassVar

from dtrain.api.exporter import ExportError, Tolerance, TrainedModel

from .error_text import first_line
from .options import NoOptions

DEPRECATED = "PyTorch has deprecated TorchScript: take it for what reads nothing else, and pt2 or onnx otherwise"


class TorchScript:
    """TorchScript, deprecated upstream: for C++ and mobile programs that read nothing else"""

    Options = NoOptions
    frameworks = ("torch",)
    ending = ".torchscript.pt"
    runtime = "dtrain.exporters.runtimes.torchscript"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance = Tolerance(1e-5, 1e-5)

    def __init__(self, options: NoOptions) -> None:
        pass

    def export(self, trained: TrainedModel, path: Path) -> None:
        import torch

        trained.notes.append(DEPRECATED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = self._compiled(trained)
            torch.jit.save(script, str(path), _extra_files={"dtrain.json": json.dumps(dict(trained.metadata))})

    def _compiled(self, trained: TrainedModel) -> Any:
        """With Python's control flow if the code can be compiled, otherwise the operators of one call."""
        import torch

        arguments = tuple(map(torch.from_numpy, trained.example))
        try:
            script = torch.jit.script(trained.model)
            if isinstance(script(*arguments), torch.Tensor) and len(trained.outputs) == 1:
                return script
            why = "it gives something else than one tensor"
        except Exception as error:  # noqa: BLE001  it is traced then
            why = first_line(error)
        try:
            script = torch.jit.trace(trained.function, arguments, check_trace=False)
        except Exception as error:
            raise ExportError(
                f"TorchScript can neither compile nor trace {type(trained.model).__name__}: {first_line(error)}",
                "--to pt2 or --to onnx take more; --to safetensors keeps the weights for the model's own code.",
            ) from error
        trained.notes.append(f"the operators of one call were recorded, since the code could not be compiled ({why})")
        return script
