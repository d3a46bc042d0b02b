"""A task whose loss says how precisely the framework multiplies, by PyTorch and by TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np


class Data:
    def data(self, split: str) -> Any:
        return np.ones((8, 4), np.float32) if split == "train" else None


class Torch(Data):
    def model(self) -> Any:
        import torch

        print("multiplies", torch.get_float32_matmul_precision())
        return torch.nn.Linear(4, 1)

    def optimizer(self, model: Any) -> Any:
        import torch

        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, model: Any, batch: Any) -> Any:
        return model(batch).square().mean()


class Keras(Data):
    def model(self) -> Any:
        import keras
        import tensorflow as tf

        print("multiplies", "in TF32" if tf.config.experimental.tensor_float_32_execution_enabled() else "in fp32")
        return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])

    def optimizer(self, model: Any) -> Any:
        import keras

        return keras.optimizers.SGD(0.1)

    def loss(self, model: Any, batch: Any) -> Any:
        import tensorflow as tf

        return tf.reduce_mean(tf.square(model(batch)))
