"""The task of masked.py for TensorFlow."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

IGNORED = -100
SAMPLES, TOKENS, CLASSES = 96, 12, 5


class Masked:
    def __init__(self, *, weighted: bool = True) -> None:
        self.weighted = weighted

    def model(self) -> Any:
        return keras.Sequential(
            [keras.Input((TOKENS, 4)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(CLASSES)]
        )

    def optimizer(self, model: Any) -> Any:
        return keras.optimizers.SGD(0.5)

    def data(self, split: str) -> Any:
        generator = np.random.default_rng(3)
        inputs = generator.normal(size=(SAMPLES, TOKENS, 4)).astype(np.float32)
        targets = inputs.argmax(-1)
        lengths = np.where(np.arange(SAMPLES) % 24 < 6, TOKENS, generator.integers(1, 4, SAMPLES))
        targets[np.arange(TOKENS)[None] >= lengths[:, None]] = IGNORED
        return inputs, targets

    def loss(self, model: Any, batch: Any) -> Any:
        inputs, targets = batch
        there = tf.cast(targets != IGNORED, tf.float32)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(targets, 0), model(inputs))
        loss = tf.reduce_sum(each * there) / tf.reduce_sum(there)
        return (loss, {"weight": tf.reduce_sum(there)}) if self.weighted else loss
