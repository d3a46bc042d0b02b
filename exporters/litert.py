"""LiteRT, the successor of TF Lite: for phones, small devices and browsers."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import ClassVar

from dtrain.api.exporter import ExportError, Tolerance, TrainedModel

from .error_text import first_line
from .installation import missing
from .options import NoOptions
from .saved_graph import save

UNKNOWN = re.compile(r"(?:Flex|Custom|TF Select) ops: ([\w, ]+)")
UNKNOWN_OP = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")
METADATA = "dtrain"


class LiteRT:
    """LiteRT (TF Lite): for phones, small devices and browsers"""

    Options = NoOptions
    frameworks = ("tensorflow",)
    ending = ".tflite"
    runtime = "dtrain.exporters.runtimes.litert"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance = Tolerance(1e-5, 1e-4)

    def __init__(self, options: NoOptions) -> None:
        pass

    @staticmethod
    def missing_here() -> str:
        """Yield the interpreter, if it is not installed."""
        return missing("export-litert", "ai_edge_litert")

    def export(self, trained: TrainedModel, path: Path) -> None:
        import tensorflow as tf

        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".graph-") as folder:
            save(trained, Path(folder) / "graph")
            converter = tf.lite.TFLiteConverter.from_saved_model(f"{folder}/graph")
            try:
                content = converter.convert()
            except Exception as error:
                text = str(error)
                found = UNKNOWN.search(text) or UNKNOWN_OP.search(text)
                what = f"it has no form of the operator {found[1].strip()}" if found else first_line(error)
                raise ExportError(
                    f"LiteRT cannot convert {type(trained.model).__name__}: {what}",
                    "Write it with other operators, or take --to onnx or --to savedmodel, which hold more of them.",
                ) from error
        path.write_bytes(content)
