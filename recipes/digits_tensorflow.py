"""scikit-learn's handwritten digits with Keras 3: 1,797 images of 8 x 8 pixels, ten classes."""

import keras
import numpy as np
from keras import layers, ops
from keras.losses import sparse_categorical_crossentropy as cross_entropy
from sklearn.datasets import load_digits


class Digits:
    """A small convolutional network; `hidden` is the width of its last layer but one."""

    def __init__(self, hidden: int = 64, dropout: float = 0.1):
        self.hidden = hidden
        self.dropout = dropout
        images, labels = load_digits(return_X_y=True)
        self.images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
        self.held_out = np.arange(len(labels)) % 5 == 0
        self.labels = labels

    def model(self):
        return keras.Sequential([
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"), layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(), layers.Flatten(),
            layers.Dense(self.hidden, activation="relu"), layers.Dropout(self.dropout), layers.Dense(10),
        ])  # fmt: skip

    def optimizer(self, model):
        return keras.optimizers.AdamW(learning_rate=2e-3, weight_decay=0.01)

    def schedule(self, step, total_steps):
        return 1 - 0.9 * step / total_steps

    def data(self, split):
        chosen = self.held_out if split == "eval" else ~self.held_out
        return self.images[chosen], self.labels[chosen]

    def loss(self, model, batch):
        images, labels = batch
        return ops.mean(cross_entropy(labels, model(images, training=True), from_logits=True))

    def metrics(self, model, batch):
        images, labels = batch
        scores = model(images, training=False)
        right = ops.equal(ops.argmax(scores, axis=1), labels)
        return {"loss": ops.mean(cross_entropy(labels, scores, from_logits=True)), "accuracy": ops.mean(right)}
