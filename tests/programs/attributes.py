"""A task that trains by what it keeps in its attributes: a counter, means, a queue, generators, an average, and what its constructor drew."""

import collections
import os
import random
import signal
import time

import numpy as np
import torch
from torch import nn

INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


class Keeps:
    """Regression on made-up numbers; `kill` is the call in which rank 1 is killed."""

    def __init__(self, kill=0):
        self.kill, self.calls, self.mean = kill, 0, 0.0
        self.generators = np.random.default_rng(0)
        self.python, self.torch = random.Random(3), torch.Generator().manual_seed(5)
        self.queue, self.seen, self.log = collections.deque(maxlen=3), {}, []
        self.scale, self.average = torch.ones(()), nn.Linear(4, 1)
        self.drawn = random.random() + np.random.random() + float(torch.rand(()))

    def model(self):
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        return self.net

    def optimizer(self, model):
        self.updates = torch.optim.SGD(model.parameters(), lr=0.01)
        return self.updates

    def data(self, split):
        chosen = np.random.permutation(64)[:48]
        return (INPUTS[chosen], INPUTS[chosen].sum(1, keepdim=True)) if split == "train" else None

    def loss(self, model, batch):
        inputs, targets = batch
        loss = (model(inputs) - targets).square().mean()
        if not model.training:
            return loss
        self.calls += 1
        self.late = getattr(self, "late", 0.0) + 0.5
        self.mean = 0.9 * self.mean + 0.1 * float(loss.detach())
        self.scale = 0.9 * self.scale + 0.1 * loss.detach()
        self.queue.append(self.calls)
        self.log.append(self.calls)
        self.seen[f"part {self.calls % 3}"] = self.calls
        with torch.no_grad():
            self.average.weight.data.mul_(0.99)
        noise = self.python.random() + float(self.generators.normal()) + float(torch.rand((), generator=self.torch))
        kept = (
            self.mean
            + float(self.scale)
            + noise
            + sum(self.queue)
            + self.late
            + len(self.log)
            + sum(self.seen.values())
        )
        if self.calls == self.kill and os.environ["DTRAIN_ATTEMPT"] == "1" and os.environ["RANK"] == "1":
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)
        return loss * (1 + 0.01 * kept + 0.1 * float(self.average.weight.sum()) + 0.1 * self.drawn)


class Parts(Keeps):
    """Keeps an array of each rank's own, which is too large for that, and a list that grows out of what is kept."""

    def __init__(self, kill=0):
        super().__init__(kill)
        self.rows, self.words = np.zeros(500), []

    def loss(self, model, batch):
        self.rows[self.calls % 500] = float(batch[0].sum())
        self.words += ["word"] * 1000
        return super().loss(model, batch)


COUNT, STEPS = 0, []


class Globals(Keeps):
    """Keeps something in its file and in its class, too."""

    shared = {}

    def loss(self, model, batch):
        global COUNT
        COUNT += model.training
        STEPS.append(COUNT)
        self.shared["steps"] = COUNT
        return super().loss(model, batch) * (1 + 0.01 * COUNT + 0.01 * len(STEPS) + 0.01 * self.shared["steps"])


def train(context):
    global COUNT
    model, optimizer = context.prepare(
        lambda: nn.Linear(4, 1), lambda model: torch.optim.SGD(model.parameters(), lr=0.01)
    )
    for (inputs,) in context.batches((INPUTS,)):
        COUNT += 1
        if context.params.get("kill") == COUNT and os.environ["DTRAIN_ATTEMPT"] == "1" and context.rank == 1:
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)
        loss = (model(inputs) - COUNT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
