"""Runs a .keras file."""

from __future__ import annotations

from typing import Any


def load(path: str) -> Any:
    """Return a function from input arrays to output arrays."""
    import keras

    model = keras.saving.load_model(path, compile=False)

    def run(arrays: list[Any]) -> list[Any]:
        inputs = keras.tree.pack_sequence_as(model.input, arrays) if len(arrays) > 1 else arrays[0]
        return [keras.ops.convert_to_numpy(one) for one in keras.tree.flatten(model(inputs, training=False))]

    return run


def versions() -> dict[str, str]:
    """Return the versions of the runtime."""
    import keras

    return {"keras": str(keras.__version__)}
