"""The task of curves.py for TensorFlow, with a metric object of Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

HELD_OUT = 53


class Curves:
    def model(self) -> Any:
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])

    def optimizer(self, model: Any) -> Any:
        return keras.optimizers.SGD(0.2)

    def data(self, split: str) -> Any:
        generator = np.random.default_rng(len(split))
        inputs = generator.normal(size=(160 if split == "train" else HELD_OUT, 6)).astype(np.float32)
        labels = (inputs.sum(1) + generator.normal(size=len(inputs)) > 0).astype(np.int64)
        order = np.argsort(labels, kind="stable") if split == "eval" else np.arange(len(inputs))
        return inputs[order], labels[order]

    def loss(self, model: Any, batch: Any) -> Any:
        inputs, labels = batch
        return keras.ops.mean(keras.losses.binary_crossentropy(labels[:, None], model(inputs), from_logits=True))

    def outputs(self, model: Any, batch: Any) -> Any:
        return model(batch[0])[:, 0], batch[1]

    def metrics_of(self, scores: Any, labels: Any) -> dict[str, Any]:
        from sklearn.metrics import roc_auc_score

        if len(set(labels.tolist())) < 2:
            raise ValueError("only one class")
        assert len(scores) == HELD_OUT
        assert labels.dtype == np.int64
        keras_area = keras.metrics.AUC(num_thresholds=2000, from_logits=True)
        keras_area.update_state(labels, scores)
        return {"auc": roc_auc_score(labels, scores), "object": keras_area.result(), "first": scores[0]}
