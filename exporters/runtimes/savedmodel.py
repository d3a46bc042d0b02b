"""Runs the signature serving_default of a SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(path: str) -> Any:
    """Return a function from input arrays to output arrays; `path` may be the folder of the numbered ones."""
    import tensorflow as tf

    newest = max(
        (one for one in Path(path).iterdir() if one.name.isdigit()), key=lambda one: int(one.name), default=Path(path)
    )
    loaded = tf.saved_model.load(str(newest))  # its functions live as long as it does
    signature = loaded.signatures["serving_default"]
    inputs = sorted(signature.structured_input_signature[1])
    outputs = sorted(signature.structured_outputs)

    def run(arrays: list[Any], keep: Any = loaded) -> list[Any]:
        given = signature(**{name: tf.constant(array) for name, array in zip(inputs, arrays, strict=True)})
        return [given[name].numpy() for name in outputs]

    return run


def versions() -> dict[str, str]:
    """Return the versions of the runtime."""
    import tensorflow as tf

    return {"tensorflow": str(tf.__version__)}
