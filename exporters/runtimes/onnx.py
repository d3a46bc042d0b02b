"""Runs an ONNX model in onnxruntime."""

from __future__ import annotations

from typing import Any


def load(path: str) -> Any:
    """Return a function from input arrays to output arrays."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def versions() -> dict[str, str]:
    """Return the versions of the runtime."""
    import onnxruntime

    return {"onnxruntime": str(onnxruntime.__version__)}
