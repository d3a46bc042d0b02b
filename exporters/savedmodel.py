"""SavedModel: TensorFlow's own form, in the numbered folder that TF Serving looks for."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from dtrain.api.exporter import Tolerance, TrainedModel

from .options import NoOptions
from .saved_graph import save

VERSION = "1"


class SavedModel:
    """TensorFlow's SavedModel with the signature serving_default, in a folder 1/ as TF Serving looks for it"""

    Options = NoOptions
    frameworks = ("tensorflow",)
    ending = "/"
    runtime = "dtrain.exporters.runtimes.savedmodel"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance = Tolerance(1e-5, 1e-5)

    def __init__(self, options: NoOptions) -> None:
        pass

    def export(self, trained: TrainedModel, path: Path) -> None:
        path.mkdir()
        save(trained, path / VERSION)
