"""The contract's task for PyTorch: no dropout and no batch norm, so that every size must give equal losses."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def made_up(samples=403):
    generator = np.random.default_rng(7)
    inputs = generator.normal(size=(samples, 8)).astype(np.float32)
    return inputs, np.sin(inputs).sum(1, keepdims=True).astype(np.float32)


class Mlp:
    """Regression on made-up numbers."""

    def __init__(self, pause=0.0):
        self.pause = pause

    def model(self):
        return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def schedule(self, step, total_steps):
        return 1 - step / (2 * total_steps)

    def data(self, split):
        return made_up() if split == "train" else made_up(37)

    def loss(self, model, batch):
        import time

        time.sleep(self.pause)
        inputs, targets = batch
        return F.mse_loss(model(inputs), targets)
