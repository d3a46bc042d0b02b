"""scikit-learn's handwritten digits with PyTorch: 1,797 images of 8 x 8 pixels, ten classes."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


class Digits:
    """A small convolutional network; `hidden` is the width of its last layer but one."""

    def __init__(self, hidden: int = 64, dropout: float = 0.1):
        self.hidden = hidden
        self.dropout = dropout
        images, labels = load_digits(return_X_y=True)
        self.images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        self.held_out = np.arange(len(labels)) % 5 == 0
        self.labels = labels

    def model(self):
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 16, self.hidden), nn.ReLU(), nn.Dropout(self.dropout), nn.Linear(self.hidden, 10),
        )  # fmt: skip

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)

    def schedule(self, step, total_steps):
        return 1 - 0.9 * step / total_steps

    def data(self, split):
        chosen = self.held_out if split == "eval" else ~self.held_out
        return self.images[chosen], self.labels[chosen]

    def loss(self, model, batch):
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def metrics(self, model, batch):
        images, labels = batch
        scores = model(images)
        return {"loss": F.cross_entropy(scores, labels), "accuracy": (scores.argmax(1) == labels).double().mean()}
