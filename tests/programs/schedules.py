"""A loop of one's own with a scheduler, an average of weights and a counter that it registers, as torch's documentation does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

SCHEDULES: dict[str, Any] = {
    "linear": lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5),
    "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=0.2, total_iters=8),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10)),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.9)], [5]
    ),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
    "one-cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=100),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=4),
}  # fmt: skip


def train(context: Any) -> None:
    params = context.params
    rate = (
        torch.tensor(0.05)
        if params.get("rate") == "tensor"
        else np.float64(0.05)
        if params.get("rate") == "numpy"
        else 0.05
    )
    model, optimizer = context.prepare(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)),
        lambda model: torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9),
    )
    made = SCHEDULES.get(params["schedule"])
    schedule = context.register("schedule", made(optimizer)) if made else None
    average = context.register("average", AveragedModel(nn.Linear(8, 1)))
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 8, generator=generator)
    for batch, targets in context.batches((inputs.numpy(), inputs.sum(1, keepdim=True).numpy())):
        loss = nn.functional.mse_loss(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        context.report(loss=loss, rate=float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if schedule:
            schedule.step()
        average.update_parameters(nn.Linear(8, 1))
