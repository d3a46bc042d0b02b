"""A model of about a million parameters: as a task for dtrain's loop, and as a MirroredStrategy loop written by hand."""

import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


class Million:
    """Regression on made-up numbers."""

    def model(self):
        layers = [keras.layers.Dense(768, "relu"), keras.layers.Dense(768, "relu"), keras.layers.Dense(256)]
        return keras.Sequential([keras.Input((256,)), *layers])

    def optimizer(self, model):
        return keras.optimizers.AdamW(1e-3)

    def data(self, split):
        if split == "eval":
            return None
        numbers = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float32)
        return numbers, numbers[:, ::-1].copy()

    def loss(self, model, batch):
        return tf.reduce_mean(tf.square(model(batch[0]) - batch[1]))


if __name__ == "__main__":
    # What a person would write from TensorFlow's tutorial on custom training with tf.distribute.
    steps, batch, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    tf.config.threading.set_intra_op_parallelism_threads(2)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    task = Million()
    data = (
        tf.data.Dataset.from_tensor_slices(task.data("train"))
        .shuffle(20_000)
        .batch(batch, drop_remainder=True)
        .repeat()
    )
    batches = iter(strategy.experimental_distribute_dataset(data))
    with strategy.scope():
        model = task.model()
        optimizer = task.optimizer(model)
        optimizer.build(model.trainable_variables)

    def one(part):
        with tf.GradientTape() as tape:
            loss = task.loss(model, part) / 2
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    @tf.function
    def step(parts):
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(one, args=(parts,)), axis=None)

    times = []
    for _ in range(steps):
        float(step(next(batches)))
        times.append(time.time())
    Path(out).write_text("\n".join(map(str, times)))
