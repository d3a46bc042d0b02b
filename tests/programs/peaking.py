"""A task whose score is best after 30 steps."""

import time

import torch
from torch import nn


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(4, 1)
        self.register_buffer("steps", torch.zeros(()))


class Peaking:
    def __init__(self, pause=0.0):
        self.pause = pause

    def model(self):
        return Counting()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.01)

    def data(self, split):
        return torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

    def loss(self, model, batch):
        time.sleep(self.pause)
        plain = getattr(model, "module", model)
        plain.steps += model.training
        return model(batch).square().mean()

    def metrics(self, model, batch):
        steps = getattr(model, "module", model).steps
        return {"score": -(steps - 30).abs()}

    def finish(self, model):
        print("finished with", int(model.steps))
