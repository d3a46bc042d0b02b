"""Runs a LiteRT model in the interpreter of ai-edge-litert."""

from __future__ import annotations

from typing import Any


def load(path: str) -> Any:
    """Return a function from input arrays to output arrays."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    runner = interpreter.get_signature_runner("serving_default")
    inputs, outputs = sorted(runner.get_input_details()), sorted(runner.get_output_details())

    def run(arrays: list[Any]) -> list[Any]:
        given = runner(**dict(zip(inputs, arrays, strict=True)))
        return [given[name].copy() for name in outputs]  # they lie in memory that the next call writes

    return run


def versions() -> dict[str, str]:
    """Return the versions of the runtime."""
    from importlib.metadata import version

    return {"ai-edge-litert": version("ai-edge-litert")}
