"""A small model whose losses and gradients go wrong where the recipe says: in chosen samples."""

from __future__ import annotations

import time

import torch
from torch import nn


class Overflow(torch.autograd.Function):
    """Gives its input, and a gradient that is not finite if `bad`."""

    @staticmethod
    def forward(ctx, value, bad):
        ctx.bad = bad
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (float("inf") if ctx.bad else 1.0), None


class Layers(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.last = nn.Linear(8, 1)

    def forward(self, x, bad):
        hidden = torch.tanh(self.norm(self.first(x)))
        return self.last(Overflow.apply(hidden, bad))


class Task:
    """`nan`: samples whose inputs are; `overflow`: samples whose gradients are infinite; `outliers`: samples with a huge target."""

    def __init__(self, nan=(), overflow=(), outliers=(), norm=True, pause=0.0):
        self.nan, self.overflow, self.outliers, self.norm, self.pause = nan, overflow, outliers, norm, pause

    def model(self):
        return Layers(self.norm)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def data(self, split):
        if split != "train":
            return None
        make = torch.Generator().manual_seed(3)
        x = torch.randn(480, 4, generator=make)
        y = x.sum(1, keepdim=True)
        x[list(self.nan)] = float("nan")
        y[list(self.outliers)] = 1e4
        marks = torch.zeros(480, dtype=torch.bool)
        marks[list(self.overflow)] = True
        return {"x": x, "y": y, "bad": marks}

    def loss(self, model, batch):
        if self.pause:
            time.sleep(self.pause)
        return (model(batch["x"], bool(batch["bad"].any())) - batch["y"]).square().mean()
