"""A loss that is the mean over the tokens that are not masked, of which each sample has another number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

IGNORED = -100
SAMPLES, TOKENS, CLASSES = 96, 12, 5


def made_up() -> tuple[np.ndarray, np.ndarray]:
    """Sequences of numbers, and a class for each of their first tokens: all tokens of the first samples of each batch, few of the others."""
    generator = np.random.default_rng(3)
    inputs = generator.normal(size=(SAMPLES, TOKENS, 4)).astype(np.float32)
    targets = inputs.argmax(-1)
    lengths = np.where(np.arange(SAMPLES) % 24 < 6, TOKENS, generator.integers(1, 4, SAMPLES))
    targets[np.arange(TOKENS)[None] >= lengths[:, None]] = IGNORED
    return inputs, targets


class Masked:
    def __init__(self, *, weighted: bool = True) -> None:
        self.weighted = weighted

    def model(self) -> Any:
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, CLASSES))

    def optimizer(self, model: Any) -> Any:
        return torch.optim.SGD(model.parameters(), lr=0.5)

    def data(self, split: str) -> Any:
        return made_up()

    def mean(self, model: Any, batch: Any) -> tuple[Any, Any]:
        inputs, targets = batch
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return loss, (targets != IGNORED).sum()

    def loss(self, model: Any, batch: Any) -> Any:
        loss, tokens = self.mean(model, batch)
        return (loss, {"weight": tokens}) if self.weighted else loss


class OwnStep(Masked):
    def train_step(self, step: Any) -> Any:
        loss, tokens = self.mean(step.model, step.batch)
        step.minimize(loss, weight=tokens)
        return {"own": loss}


class Counting(Masked):
    """Whose model, container, number and generator change in each call of `loss`."""

    def __init__(self) -> None:
        super().__init__(weighted=False)
        self.seen: list[float] = []
        self.count = 0
        self.noise = torch.Generator().manual_seed(1)

    def model(self) -> Any:
        self.net = super().model()
        self.net.register_buffer("calls", torch.zeros(()))
        return self.net

    def data(self, split: str) -> Any:
        return made_up() if split == "train" else None

    def loss(self, model: Any, batch: Any) -> Any:
        self.net.calls += 1
        self.count += 1
        self.seen.append(0.0)
        drawn = float(torch.rand((), generator=self.noise))
        calls = {"buffer": self.net.calls.clone(), "count": self.count, "seen": len(self.seen), "drawn": drawn}
        return super().loss(model, batch), calls


def by_hand(state: Any, steps: int, global_batch: int, clip_norm: float) -> tuple[list[float], Any]:
    """The losses of a plain loop over the samples in their order from these first weights, and the last weights."""
    task = Masked()
    model = task.model()
    model.load_state_dict(state)
    optimizer = task.optimizer(model)
    inputs, targets = map(torch.from_numpy, made_up())
    losses = []
    for step in range(steps):
        part = torch.arange(step * global_batch, (step + 1) * global_batch) % SAMPLES
        loss, _ = task.mean(model, (inputs[part], targets[part]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()
