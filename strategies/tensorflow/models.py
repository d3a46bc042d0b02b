"""The user's model as a task gives it, checked, with its weights made. Importing this module imports no framework."""

from __future__ import annotations

from typing import Any

from dtrain.common.errors import UserError
from dtrain.job.task_answers import gave


def made(task: Any, name: str) -> Any:
    """The task's model, with weights."""
    import keras

    model = task.model()
    if not isinstance(model, keras.Layer):
        raise UserError(f"{name}.model gave {gave(model)}; TensorFlow strategies train a keras.Model")
    if not model.built:
        _give_weights(task, model)
    return model


def _give_weights(task: Any, model: Any) -> None:
    """Keras makes the weights of a model without an input shape when it first sees data: show it one sample, in a scope
    where neither random numbers nor moving averages change."""
    import keras
    import numpy as np
    import tensorflow as tf

    from dtrain.data.stream import opened

    if not hasattr(task, "data"):
        raise TypeError("the model has no weights yet: begin it with keras.Input(shape), or build it")
    data = opened(task.data("train"), seed=0, name="task.data('train')", collate=getattr(task, "collate", None))
    sample = data.fetch(np.zeros(1, np.int64))
    with keras.StatelessScope():
        task.loss(model, tf.nest.map_structure(tf.convert_to_tensor, sample))
