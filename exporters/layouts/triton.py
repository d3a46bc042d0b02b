"""The folder that NVIDIA's Triton Inference Server serves: numbered versions of a model, and config.pbtxt."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from dtrain.api.exporter import Exported, ExportError, TensorSpec

PLATFORMS = {
    "onnx": ("onnxruntime_onnx", "model.onnx"),
    "savedmodel": ("tensorflow_savedmodel", "model.savedmodel"),
    "torchscript": ("pytorch_libtorch", "model.pt"),
}
"""Exporter → platform, and the name of the model's file."""
TYPES = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "int64": "INT64", "int32": "INT32", "int16": "INT16", "int8": "INT8",
    "uint64": "UINT64", "uint32": "UINT32", "uint16": "UINT16", "uint8": "UINT8", "bool": "BOOL",
}  # fmt: skip
MOST_BATCH = 32


class Triton:
    """A model's folder for Triton Inference Server: versions, config.pbtxt with signature and batching"""

    formats: ClassVar[tuple[str, ...]] = tuple(PLATFORMS)
    default: ClassVar[Mapping[str, str]] = MappingProxyType({"torch": "onnx", "tensorflow": "onnx"})

    @staticmethod
    def write(exported: Exported, folder: Path, version: int) -> list[str]:
        platform, file = PLATFORMS[exported.format]
        own = folder / str(version)
        own.mkdir()
        for part in sorted(exported.path.parent.glob(f"{exported.path.name}*")):
            shutil.move(part, own / f"{file}{part.name.removeprefix(exported.path.name)}")
        if exported.format == "savedmodel":
            nested = next(one for one in (own / file).iterdir() if one.is_dir() and one.name.isdigit())
            shutil.move(nested, own / "graph")
            shutil.rmtree(own / file)
            shutil.move(own / "graph", own / file)
        (folder / "config.pbtxt").write_text(_config(exported, platform))
        return [
            f"tritonserver --model-repository=$PWD, in the folder that {exported.name} lies in",
            f"its HTTP address is /v2/models/{exported.name}/infer",
        ]


def _config(exported: Exported, platform: str) -> str:
    """Return a configuration with batching if all inputs and outputs begin with a free dimension, the batch."""
    tensors = (*exported.inputs, *exported.outputs)
    batched = all(spec.shape and spec.shape[0] is None for spec in tensors)
    positional = exported.format == "torchscript"
    lines = [f'name: "{exported.name}"', f'platform: "{platform}"', f"max_batch_size: {MOST_BATCH if batched else 0}"]
    lines += _tensors("input", exported.inputs, batched=batched, positional=positional)
    lines += _tensors("output", exported.outputs, batched=batched, positional=positional)
    if batched:
        lines.append("dynamic_batching { max_queue_delay_microseconds: 2000 }")
    return "\n".join([*lines, ""])


def _tensors(kind: str, specs: Iterable[TensorSpec], *, batched: bool, positional: bool) -> list[str]:
    found = []
    for number, spec in enumerate(specs):
        if spec.dtype not in TYPES:
            raise ExportError(f"Triton has no type for {spec.dtype}, which {spec.name} has", "Take another layout.")
        sizes = [-1 if size is None else size for size in (spec.shape[1:] if batched else spec.shape)]
        reshaped = "" if sizes else " reshape: { shape: [ ] }"
        name = f"{kind.upper()}__{number}" if positional else spec.name
        dims = ", ".join(map(str, sizes or [1]))
        found.append(f'{kind} [ {{ name: "{name}" data_type: TYPE_{TYPES[spec.dtype]} dims: [ {dims} ]{reshaped} }} ]')
    return found
