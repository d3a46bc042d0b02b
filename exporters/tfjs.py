"""TensorFlow.js: a graph model for browsers and Node.

The converter's own requirements cannot be met beside a current TensorFlow, so that it gets an environment of its own (`tfjs_environment`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

from dtrain.api.exporter import ExportError, Tolerance, TrainedModel

from . import tfjs_environment
from .options import NoOptions
from .saved_graph import save

UNKNOWN = re.compile(r"Unsupported Ops in the model (?:before|after) optimization\s*([\w, ]+)")
PROGRAM = """
import sys
from tensorflowjs.converters.tf_saved_model_conversion_v2 import convert_tf_saved_model
convert_tf_saved_model(sys.argv[1], sys.argv[2])
"""


class TensorFlowJs:
    """A graph model of TensorFlow.js, for browsers and Node; verified in Node"""

    Options = NoOptions
    frameworks = ("tensorflow",)
    ending = "_tfjs/"
    runtime = "dtrain.exporters.runtimes.tfjs"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance = Tolerance(1e-5, 1e-4)

    def __init__(self, options: NoOptions) -> None:
        pass

    @staticmethod
    def missing_here() -> str:
        """Node, in which it is verified; the rest is brought by the first export."""
        lacking = [name for name in ("node", "npm") if shutil.which(name) is None]
        return (
            f"needs {' and '.join(lacking)}, in which its models are verified: install Node 18 or newer"
            if lacking
            else ""
        )

    def export(self, trained: TrainedModel, path: Path) -> None:
        environment = tfjs_environment.ready()
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".graph-") as folder:
            save(trained, Path(folder) / "graph")
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, f"{folder}/graph", str(path)], cwd=folder, stdin=subprocess.DEVNULL,
                env=os.environ | environment.variables, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            print(done.stdout, done.stderr)
            found = UNKNOWN.search(done.stderr + done.stdout)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            what = f"it has no form of the operator {found[1].strip()}" if found else last
            raise ExportError(
                f"TensorFlow.js cannot convert {type(trained.model).__name__}: {what}",
                "Write it with other operators; in browsers there are also --to onnx (onnxruntime-web) and --to litert (LiteRT.js).",
            )
        model = json.loads((path / "model.json").read_text())
        model["userDefinedMetadata"] = model.get("userDefinedMetadata", {}) | dict(trained.metadata)
        (path / "model.json").write_text(json.dumps(model))
        os.environ["NODE_PATH"] = environment.node_path  # for the runtime, which this process starts
        trained.notes.append("it was verified on the CPU of Node; a browser's GPU computes with less precision")
