"""Keras's own file: the model with its weights, for keras.saving.load_model."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from dtrain.api.exporter import ExportError, Tolerance, TrainedModel

from .error_text import first_line
from .options import NoOptions


class KerasFile:
    """The whole Keras model in a .keras file, for keras.saving.load_model"""

    Options = NoOptions
    frameworks = ("tensorflow",)
    ending = ".keras"
    runtime = "dtrain.exporters.runtimes.keras"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance = Tolerance(1e-5, 1e-5)

    def __init__(self, options: NoOptions) -> None:
        pass

    def export(self, trained: TrainedModel, path: Path) -> None:
        own = sorted({type(layer).__name__ for layer in trained.model._flatten_layers() if not _is_keras(type(layer))})
        if own:
            raise ExportError(
                f"a .keras file of this model names your own classes ({', '.join(own)}), and without their code nothing can load it",
                "Take --to savedmodel, which needs none. 'dtrain weights RUN --to X.keras' writes the file for programs that import them.",
            )
        try:
            trained.model.save(path)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ExportError(
                f"Keras cannot write {type(trained.model).__name__}: {first_line(error)}",
                "Give its layers get_config(), or take --to savedmodel; dtrain weights RUN --to X.weights.h5 keeps the weights.",
            ) from error


def _is_keras(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "keras"
