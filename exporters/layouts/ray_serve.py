"""The folder that Ray Serve serves: a module with a deployment, the runtime of the form, and numbered versions of the model."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from dtrain.api.exporter import Exported

PACKAGES = {
    "onnx": "onnxruntime", "pt2": "torch", "torchscript": "torch", "aoti": "torch", "savedmodel": "tensorflow",
    "litert": "ai-edge-litert", "keras": "tensorflow",
}  # fmt: skip
"""Exporter → what its runtime needs."""
PROGRAM = Path(__file__).with_name("serve_app.py.txt")


class RayServe:
    """A module that Ray Serve deploys, with batching; it needs Ray and the form's runtime, not dtrain"""

    formats: ClassVar[tuple[str, ...]] = tuple(PACKAGES)
    default: ClassVar[Mapping[str, str]] = MappingProxyType({"torch": "onnx", "tensorflow": "onnx"})

    @staticmethod
    def write(exported: Exported, folder: Path, version: int) -> list[str]:
        own = folder / str(version)
        own.mkdir()
        for part in sorted(exported.path.parent.glob(f"{exported.path.name}*")):
            shutil.move(part, own / part.name)
        signature = {
            "name": exported.name, "file": exported.path.name,
            "inputs": [asdict(spec) for spec in exported.inputs], "outputs": [asdict(spec) for spec in exported.outputs],
        }  # fmt: skip
        (folder / "signature.json").write_text(json.dumps(signature, indent=1))
        runtime = importlib.util.find_spec(exported.runtime)
        assert runtime is not None and runtime.origin is not None, "it ran the model"
        shutil.copyfile(runtime.origin, folder / "runtime.py")
        shutil.copyfile(PROGRAM, folder / "serve_app.py")
        (folder / "requirements.txt").write_text(f"ray[serve]\nnumpy\n{PACKAGES[exported.format]}\n")
        names = ", ".join(f'"{spec.name}": […]' for spec in exported.inputs)
        return [
            f"cd {exported.name}; pip install -r requirements.txt; serve run --working-dir . serve_app:app",
            f"""curl -d '{{"inputs": {{{names}}}}}' http://localhost:8000/""",
        ]
