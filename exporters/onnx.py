"""ONNX: for onnxruntime on servers, phones and in browsers, and between the frameworks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from dtrain.api.exporter import ExportError, Tolerance, TrainedModel
from dtrain.job.limits import Limit

from .error_text import first_line
from .installation import missing
from .torch_export import refused

OPSET = Limit(least=11, most=30)
INLINE_BYTES = 1_500_000_000
"""Larger weights lie in a file beside the graph: one file of protobuf has no more than 2 GB."""
WEIGHTS_FILE = ".data"
UNKNOWN_TORCH = re.compile(
    r"No (?:ONNX function|decompositions) .*?(?:OpOverload\(op='([\w.]+)'|for ([\w.:]+))", re.DOTALL
)


@dataclass(frozen=True)
class OnnxOptions:
    """Of ONNX."""

    opset: Annotated[int, OPSET] | None = None
    """Version of the set of operators; the exporter's own choice when not given."""


class Onnx:
    """ONNX: for onnxruntime on servers, phones and in browsers, and between the frameworks"""

    Options = OnnxOptions
    frameworks = ("torch", "tensorflow")
    ending = ".onnx"
    runtime = "dtrain.exporters.runtimes.onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx",)
    tolerance = Tolerance(1e-5, 1e-4)

    def __init__(self, options: OnnxOptions) -> None:
        self.options = options

    @staticmethod
    def missing_here() -> str:
        """Yield the packages of ONNX that are not installed."""
        return missing("export-onnx", "onnx", "onnxscript", "onnxruntime")

    def export(self, trained: TrainedModel, path: Path) -> None:
        import onnx

        model = (
            _of_torch(trained, self.options.opset)
            if trained.framework == "torch"
            else _of_keras(trained, self.options.opset)
        )
        for name, value in trained.metadata.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = name, value
        onnx.save_model(
            model,
            str(path),
            save_as_external_data=model.ByteSize() > INLINE_BYTES,
            location=f"{path.name}{WEIGHTS_FILE}",
        )


def _of_torch(trained: TrainedModel, opset: int | None) -> Any:
    import torch

    arguments = tuple(map(torch.from_numpy, trained.example))
    free = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if size is None} or None
        for spec in trained.inputs
    )
    try:
        program = torch.onnx.export(
            trained.function, arguments, dynamo=True, dynamic_shapes=(free,), verbose=False, opset_version=opset,
            input_names=[spec.name for spec in trained.inputs], output_names=[spec.name for spec in trained.outputs],
        )  # fmt: skip
    except Exception as error:
        raise _refused_by_torch(error, trained) from error
    assert program is not None, "it was made by dynamo"
    return program.model_proto


def _refused_by_torch(error: Exception, trained: TrainedModel) -> ExportError:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if found := UNKNOWN_TORCH.search(str(cause)):
            return _unknown(found[1] or found[2], trained, "--to pt2, which holds all of PyTorch's")
    inner = next((cause for cause in reversed(causes) if isinstance(cause, Exception)), error)
    found_error = refused(inner, trained)
    return ExportError(found_error.message, found_error.hint)


def _of_keras(trained: TrainedModel, opset: int | None) -> Any:
    import onnx
    import tf2onnx

    names = [spec.name for spec in trained.inputs]
    try:
        model, _ = tf2onnx.convert.from_function(
            trained.function, input_signature=trained.function.input_signature, opset=opset
        )
    except Exception as error:
        raise ExportError(
            f"tf2onnx cannot convert {type(trained.model).__name__}: {first_line(error)}",
            "Take --to savedmodel, which holds all of TensorFlow's operators.",
        ) from error
    assert [one.name for one in model.graph.input] == names, "the signature names them"
    unknown = sorted({node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain)})
    if unknown:
        raise _unknown(", ".join(unknown), trained, "--to savedmodel, which holds all of TensorFlow's")
    return model


def _unknown(operators: str, trained: TrainedModel, instead: str) -> ExportError:
    return ExportError(
        f"ONNX has no form of the operator {operators}, which {type(trained.model).__name__} uses",
        f"Write it with other operators, or take {instead}.",
    )
