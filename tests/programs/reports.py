"""Reports by name, whatever the other rank reports."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def train(context: Any) -> None:
    model, optimizer = context.prepare(
        lambda: nn.Linear(8, 1), lambda model: torch.optim.SGD(model.parameters(), lr=0.01)
    )
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    for batch, targets in context.batches((inputs.numpy(), inputs.sum(1, keepdim=True).numpy())):
        loss = nn.functional.mse_loss(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if context.rank == 0:
            context.report(easy=100.0, loss=loss)
        else:
            context.report(loss=loss, hard=7.0)
        if context.step == 4:
            context.report(odd=0.5)
        if context.step == 6 and context.rank == 0:
            context.report(alone=3.0)
