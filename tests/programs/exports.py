"""Tasks whose models some forms cannot hold: operators without an equal, control flow, and a batch that the others see."""

import numpy as np
import torch
from torch import nn


def samples(split):
    generator = np.random.default_rng(len(split))
    inputs = generator.normal(size=(64, 6)).astype(np.float32)
    return inputs, (inputs.sum(1) > 0).astype(np.int64)


class Base:
    """A linear model on six numbers; the classes below change what it computes."""

    layer = nn.Identity

    def model(self):
        return nn.Sequential(nn.Linear(6, 8), self.layer(), nn.Linear(8, 2))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def data(self, split):
        return samples(split)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Branch(nn.Module):
    def forward(self, values):
        if values.sum() > 0:
            return values
        return -values


class Bessel(nn.Module):
    def forward(self, values):
        return values + torch.special.bessel_j0(values.detach())


class FixedBatch(nn.Module):
    def forward(self, values):
        rows = int(values.shape[0] // 16 * 16)
        return values[:rows].repeat(2, 1)[: values.shape[0]] if rows else values


class Chance(nn.Module):
    def forward(self, values):
        return values + torch.rand_like(values)


class Relu(Base):
    layer = nn.ReLU


class Branching(Base):
    layer = Branch


class Operator(Base):
    layer = Bessel


class Fixed(Base):
    layer = FixedBatch


class Random(Base):
    layer = Chance


def loop(context):
    """A loop of its own on the run's batches."""
    task = Relu()
    model, optimizer = context.prepare(task.model, task.optimizer)
    for batch in context.batches(task.data("train")):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)


def own_data(context):
    """A loop of its own on data of its own."""
    task = Relu()
    model, optimizer = context.prepare(task.model, task.optimizer)
    inputs, labels = map(torch.from_numpy, task.data("train"))
    for _ in range(context.step, context.total_steps):
        loss = task.loss(model, (inputs, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
