"""A Keras model as a SavedModel of one signature, which other forms begin with. Importing this module imports no framework."""

from __future__ import annotations

from pathlib import Path

from dtrain.api.exporter import ExportError, TrainedModel

from .error_text import first_line


def save(trained: TrainedModel, path: Path) -> None:
    """Write it to a new folder. Raises `ExportError` for a model that decides in Python by the values of a tensor."""
    import keras

    archive, function = keras.export.ExportArchive(), trained.function
    archive.track(trained.model)
    try:
        archive.add_endpoint(
            "serving_default", function.python_function, input_signature=list(function.input_signature)
        )
        archive.write_out(str(path), verbose=False)
    except Exception as error:
        raise refused(error, trained) from error


def refused(error: Exception, trained: TrainedModel) -> ExportError:
    """Return TensorFlow's message in one sentence."""
    name, text = type(trained.model).__name__, str(error)
    if (
        "OperatorNotAllowedInGraphError" in type(error).__name__
        or "symbolic `tf.Tensor`" in text
        or "as a Python `bool`" in text
    ):
        return ExportError(
            f"{name} decides by the values of a tensor in Python, which a graph cannot: {first_line(error)}",
            "Write it with tf.where, tf.cond or keras.ops.cond; --to keras keeps the model with its own code.",
        )
    return ExportError(
        f"{name} cannot be written as a graph: {first_line(error)}", "--to keras keeps the model with its own code."
    )
