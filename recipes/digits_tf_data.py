"""Handwritten digits from a `tf.data` pipeline: shuffled, shifted at random and prefetched by TensorFlow's own threads."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from keras.losses import sparse_categorical_crossentropy as cross_entropy
from sklearn.datasets import load_digits


def shifted(image, label):
    """The image moved by up to a pixel."""
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    return tf.image.random_crop(padded, [8, 8, 1]), label


class Digits:
    """Single samples come out of the pipeline: dtrain makes the batches, the same at any number of workers."""

    def __init__(self, hidden: int = 64):
        self.hidden = hidden
        images, labels = load_digits(return_X_y=True)
        self.images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
        self.labels = labels
        self.held_out = np.arange(len(labels)) % 5 == 0

    def model(self):
        return keras.Sequential([
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"), layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(), layers.Flatten(), layers.Dense(self.hidden, activation="relu"), layers.Dense(10),
        ])  # fmt: skip

    def optimizer(self, model):
        return keras.optimizers.AdamW(learning_rate=2e-3, weight_decay=0.01)

    def schedule(self, step, total_steps):
        return 1 - 0.9 * step / total_steps

    def data(self, split):
        chosen = self.held_out if split == "eval" else ~self.held_out
        samples = tf.data.Dataset.from_tensor_slices((self.images[chosen], self.labels[chosen]))
        if split == "eval":
            return samples
        return samples.shuffle(len(samples)).map(shifted, num_parallel_calls=2).prefetch(64)

    def loss(self, model, batch):
        images, labels = batch
        return ops.mean(cross_entropy(labels, model(images, training=True), from_logits=True))

    def metrics(self, model, batch):
        images, labels = batch
        scores = model(images, training=False)
        return {"accuracy": ops.mean(ops.equal(ops.argmax(scores, axis=1), labels))}
