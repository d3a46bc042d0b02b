"""A small PyTorch task with everything that could go wrong in it: dropout, batch norm, momentum, a schedule."""

import os
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Tiny:
    """Regression on made-up numbers; the parameters make it slow, or fail, at will."""

    def __init__(self, samples=1000, width=16, pause=0.0, fail_at=None, fail_rank=0, fail_how="bug", norm=True):
        self.pause, self.fail_at, self.fail_rank, self.fail_how = pause, fail_at, fail_rank, fail_how
        self.width, self.norm, self.steps = width, norm, 0
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(samples, 8, generator=generator)
        self.targets = self.inputs.sin().sum(1, keepdim=True)

    def model(self):
        middle = [nn.BatchNorm1d(self.width)] if self.norm else []
        return nn.Sequential(nn.Linear(8, self.width), *middle, nn.ReLU(), nn.Dropout(0.1), nn.Linear(self.width, 1))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def schedule(self, step, total_steps):
        return 1 - step / (2 * total_steps)

    def data(self, split):
        return (self.inputs, self.targets) if split == "train" else (self.inputs[:101], self.targets[:101])

    def loss(self, model, batch):
        inputs, targets = batch
        self.steps += 1
        time.sleep(self.pause)
        if self.fail_at is not None and self.steps > self.fail_at and int(os.environ["DTRAIN_RANK"]) == self.fail_rank:
            self.fail()
        return F.mse_loss(model(inputs), targets)

    def fail(self):
        if self.fail_how == "bug":
            raise ValueError("the loss of this batch is nonsense")
        if self.fail_how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.fail_how == "chance":
            raise ConnectionResetError("the file server hung up")
        if self.fail_how == "wait":
            time.sleep(10_000)
        if self.fail_how == "spin":
            while True:
                pass
        if self.fail_how == "leave":
            sys.exit(0)
        if self.fail_how == "vanish":
            os._exit(0)
        if self.fail_how == "device":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        os.kill(os.getpid(), int(self.fail_how))


def train(context):
    """The same as a function with a loop of its own."""
    task = Tiny(**context.params)
    model, optimizer = context.prepare(task.model, task.optimizer)
    for batch in context.batches((task.inputs, task.targets)):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
