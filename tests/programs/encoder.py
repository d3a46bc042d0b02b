"""A model that is trained through a method of its own: by the model that dtrain gives, or past it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 1)
        self.kind = "encoder"

    def encode(self, inputs: Any, scale: float = 1.0) -> Any:
        return self.body(inputs) * scale

    def forward(self, inputs: Any) -> Any:
        return self.head(self.encode(inputs).relu())


class Encoder:
    def __init__(self, *, past: bool = False, plain: bool = False) -> None:
        self.past, self.plain = past, plain

    def model(self) -> Any:
        return Net()

    def optimizer(self, model: Any) -> Any:
        return torch.optim.SGD(model.parameters(), lr=0.05)

    def data(self, split: str) -> Any:
        inputs = torch.randn(128, 8, generator=torch.Generator().manual_seed(len(split)))
        return inputs.numpy(), inputs.sum(1, keepdim=True).numpy()

    def loss(self, model: Any, batch: Any) -> Any:
        inputs, targets = batch
        assert model.kind == "encoder"
        if self.past:
            model = getattr(model, "module", model)
        outputs = (
            model(inputs)
            if self.plain
            else model.head(model.encode(inputs, scale=1.0).relu())
            if self.past
            else _both(model, inputs)
        )
        return nn.functional.mse_loss(outputs, targets)


def _both(model: Any, inputs: Any) -> Any:
    hidden = model.encode(inputs, scale=1.0)
    return model.head(hidden.relu())
