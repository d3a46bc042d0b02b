"""AOTInductor: the graph of `torch.export` compiled to a shared library for this kind of processor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from dtrain.api.exporter import ExportError, Tolerance, TrainedModel

from .error_text import first_line
from .options import NoOptions
from .torch_export import program_of

COMPILERS = ("c++", "g++", "clang++")


class AotInductor:
    """torch.export, compiled by AOTInductor for the processor of this machine; needs a C++ compiler"""

    Options = NoOptions
    frameworks = ("torch",)
    ending = ".aoti.pt2"
    runtime = "dtrain.exporters.runtimes.aoti"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance = Tolerance(1e-5, 1e-4)

    def __init__(self, options: NoOptions) -> None:
        pass

    @staticmethod
    def missing_here() -> str:
        """Yield a C++ compiler, if there is none."""
        return (
            "" if any(map(shutil.which, COMPILERS)) else "needs a C++ compiler (g++ or clang++), and there is none here"
        )

    def export(self, trained: TrainedModel, path: Path) -> None:
        import torch

        program = program_of(trained)
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:
            raise ExportError(
                f"AOTInductor cannot compile {type(trained.model).__name__}: {first_line(error)}",
                "--to pt2 is the same graph without the compilation.",
            ) from error
