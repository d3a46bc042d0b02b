"""A drawn program for the TensorFlow strategies, with the same training by hand beside it."""

from __future__ import annotations

from grammar import KERAS_OPTIMIZERS, KERAS_SCHEDULES, Choices
from program_parts import ROWS, answer_of_loss, factor_of

HEAD = '''\
"""Drawn: {choices}."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from watch import Watch
'''
COUNTER = '''
class Counter(layers.Layer):
    """Counts its passes in training, and scales by their number."""

    def build(self, shape):
        self.passes = self.add_weight(name="passes", shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.passes.assign(self.passes + 1.0)
        return x / (1 + self.passes / 100)
'''
DATA = {
    "arrays": "def make_data():\n    return X, Y\n",
    "map": "class Rows:\n    def __len__(self):\n        return SIZE\n\n    def __getitem__(self, index):\n"
    "        return X[index], Y[index]\n\n\ndef make_data():\n    return Rows()\n",
    "stream": "def make_data():\n    return tf.data.Dataset.from_tensor_slices((X, Y))\n",
}


def source(chosen: Choices) -> str:
    """Return the program."""
    parts = [(HEAD + ROWS).format(choices=chosen, size=chosen["size"]), COUNTER if chosen["extra"] == "counter" else "",
        DATA[chosen["data"]], "", _model(chosen), "", _optimizer(chosen), "", _loss(chosen), "", _task(chosen), ""]  # fmt: skip
    return "\n".join([*parts, _by_hand(chosen)])


def _model(chosen: Choices) -> str:
    kind = 'dtype="float64"'
    lines = [f"keras.Input((6,), {kind})"]
    if chosen["model"] == "conv":
        lines += [f"layers.Reshape((6, 1), {kind})", f"layers.Conv1D(2, 3, {kind})", f"layers.Flatten({kind})"]
    else:
        lines.append(f"layers.Dense(8, {kind})")
    if chosen["norm"] != "none":
        lines.append(f"layers.{'BatchNormalization' if chosen['norm'] == 'batch' else 'LayerNormalization'}({kind})")
    lines.append(f'layers.Activation("tanh", {kind})')
    if chosen["dropout"] == "yes":
        lines.append(f"layers.Dropout(0.2, {kind})")
    if chosen["extra"] == "frozen":
        lines.append(f"layers.Dense(8, trainable=False, {kind})")
    if chosen["extra"] == "counter":
        lines.append(f"Counter({kind})")
    if chosen["extra"] == "regularized":
        lines.append(f'layers.Dense(8, kernel_regularizer="l2", {kind})')
    if chosen["extra"] == "tied":
        lines += [f"tied := layers.Dense(8, {kind})", 'layers.Activation("tanh", dtype="float64")', "tied"]
    lines.append(f"layers.Dense(1, {kind})")
    return "def make_model():\n    return keras.Sequential([\n        " + ",\n        ".join(lines) + ",\n    ])\n"


def _optimizer(chosen: Choices) -> str:
    made = KERAS_OPTIMIZERS[chosen["keras"]]
    rate = made.partition("(")[2].partition(",")[0].partition(")")[0]
    if chosen["place"] == "scheduler":
        made = made.replace(rate, KERAS_SCHEDULES[chosen["schedule"]].format(rate), 1)
    return f"def make_optimizer(model):\n    return keras.optimizers.{made}\n"


def _loss(chosen: Choices) -> str:
    value = {
        "sum": "ops.sum((model(x, training=True) - y) ** 2)",
        "masked": "ops.sum((model(x, training=True) - y) ** 2 * kept) / ops.maximum(ops.sum(kept), 1.0)",
    }.get(chosen["loss"], "ops.mean((model(x, training=True) - y) ** 2)")
    kept = "    kept = ops.cast(y > 0, 'float64')\n" if chosen["loss"] == "masked" else ""
    more = " + sum(model.losses)" if chosen["extra"] == "regularized" else ""
    return f"def loss_of(model, batch):\n    x, y = batch\n{kept}    return {value}{more}\n"


def _task(chosen: Choices) -> str:
    numbers = {"none": "{}", "every": "{'size': ops.mean(ops.abs(batch[0]))}",
               "nan": "{'size': ops.mean(ops.log(batch[0][:, 0]))}"}[chosen["metrics"]]  # fmt: skip
    result = answer_of_loss(chosen, numbers, "ops.sum(ops.cast(batch[1] > 0, 'float64'))")
    return (
        "class Task:\n    def __init__(self, **params):\n        self.watch = Watch(**params)\n\n    def model(self):\n"
        "        return make_model()\n\n    def optimizer(self, model):\n        return make_optimizer(model)\n\n"
        "    def data(self, split):\n        return make_data() if split == 'train' else None\n\n"
        "    def loss(self, model, batch):\n        self.watch.in_graph(batch[0])\n        loss = loss_of(model, batch)\n"
        f"        return {result}\n{factor_of(chosen)}"
    )


def _by_hand(chosen: Choices) -> str:
    factor = "rate.assign(base * min(1.0, (number + 1) / 5))" if chosen["place"] == "factor" else "pass"
    clip = "gradients, _ = tf.clip_by_global_norm(gradients, 0.5)" if chosen["clip"] == "yes" else "pass"
    return f'''def by_hand(batches):
    """The same training in a loop without dtrain."""
    keras.utils.set_random_seed(3)
    model = make_model()
    optimizer = make_optimizer(model)
    optimizer.build(model.trainable_variables)
    rate = optimizer.learning_rate
    base = float(rate)
    for number, batch in enumerate(batches):
        {factor}
        rates = [float(optimizer.learning_rate)]
        with tf.GradientTape() as tape:
            loss = loss_of(model, batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        {clip}
        optimizer.apply(gradients, model.trainable_variables)
        yield float(loss), rates, None
    yield 0.0, [], model
'''
