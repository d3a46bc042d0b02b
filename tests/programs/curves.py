"""A classifier whose area under the curve is of all held-out samples at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HELD_OUT = 53


def made_up(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and noisy labels; the first held-out ones are all of one class."""
    generator = np.random.default_rng(len(split))
    inputs = generator.normal(size=(160 if split == "train" else HELD_OUT, 6)).astype(np.float32)
    labels = (inputs.sum(1) + generator.normal(size=len(inputs)) > 0).astype(np.float32)
    order = np.argsort(labels, kind="stable") if split == "eval" else np.arange(len(inputs))
    return inputs[order], labels[order]


class Curves:
    def __init__(self, means: bool = False, fault: str = "") -> None:  # noqa: FBT001
        self.fault = fault
        if means:
            self.metrics = lambda model, batch: {"loss": self.loss(model, batch)}

    def model(self) -> Any:
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1))

    def optimizer(self, model: Any) -> Any:
        return torch.optim.SGD(model.parameters(), lr=0.2)

    def data(self, split: str) -> Any:
        return made_up(split)

    def loss(self, model: Any, batch: Any) -> Any:
        inputs, labels = batch
        return F.binary_cross_entropy_with_logits(model(inputs).squeeze(-1), labels)

    def outputs(self, model: Any, batch: Any) -> Any:
        inputs, labels = batch
        return (model(inputs).squeeze(-1).sum() if self.fault == "scalar" else model(inputs).squeeze(-1)), labels

    def metrics_of(self, scores: Any, labels: Any) -> Any:
        return area(scores, labels, self.fault)


def area(scores: Any, labels: Any, fault: str = "") -> dict[str, Any]:
    """The area by scikit-learn and, as an object that would wait for other ranks, by torchmetrics."""
    from sklearn.metrics import roc_auc_score
    from torchmetrics.classification import BinaryAUROC

    if fault == "name":
        scores = scroes  # noqa: F821
    if len(np.unique(np.asarray(labels))) < 2:
        raise ValueError("only one class")
    assert len(scores) == HELD_OUT or fault == "limited", "each sample once"
    metric = BinaryAUROC()
    metric.update(torch.as_tensor(np.asarray(scores)), torch.as_tensor(np.asarray(labels)).int())
    return {"auc": roc_auc_score(labels, scores), "object": metric.compute(), "first": scores[0], "last": labels[-1]}


def train(context: Any) -> None:
    task = Curves()
    model, optimizer = context.prepare(task.model, task.optimizer)
    for batch in context.batches(made_up("train")):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
    context.evaluate(task.outputs, made_up("eval"), metrics_of=area)
