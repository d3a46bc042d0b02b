"""A model that changes in `forward`: an average of its own weights, a counter in its extra state, and one of the task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Moving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.live, self.slow = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)
        self.calls = 0
        for parameter in self.slow.parameters():
            parameter.requires_grad = False

    def forward(self, inputs: Any) -> Any:
        if self.training:
            self.calls += 1
            with torch.no_grad():
                for slow, live in zip(self.slow.parameters(), self.live.parameters(), strict=True):
                    slow.lerp_(live, 0.1)
        return self.head((self.live(inputs) + self.slow(inputs)).relu())

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state


class Passes:
    def __init__(self) -> None:
        self.losses = 0

    def model(self) -> Any:
        return Moving()

    def optimizer(self, model: Any) -> Any:
        return torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.05)

    def data(self, split: str) -> Any:
        inputs = torch.randn(128, 8, generator=torch.Generator().manual_seed(len(split)))
        return inputs.numpy(), inputs.sum(1, keepdim=True).numpy()

    def loss(self, model: Any, batch: Any) -> Any:
        self.losses += 1
        return nn.functional.mse_loss(model(batch[0]), batch[1]), {"calls": float(self.losses)}
