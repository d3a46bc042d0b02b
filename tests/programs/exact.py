"""A small model with everything whose bits could depend on the number of workers: dropout, batch norm, a tied weight, attention."""

import os

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, synchronized):
        super().__init__()
        self.embedding = nn.Embedding(50, 24)
        self.block = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.1, batch_first=True)
        self.norm = (nn.SyncBatchNorm if synchronized else nn.BatchNorm1d)(24)
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = self.block(self.embedding(tokens))
        return self.head(self.norm(hidden.transpose(1, 2)).transpose(1, 2))


class Task:
    """`FLIP=STEP:RANK` in the environment flips one bit of one gradient, as a processor that computes wrongly does."""

    def __init__(self, synchronized=False):
        self.synchronized = synchronized
        self.step, _, rank = os.environ.get("FLIP", "-1:0").partition(":")
        self.mine = rank == os.environ.get("DTRAIN_RANK")
        self.calls = 0

    def model(self):
        return Net(self.synchronized)

    def optimizer(self, model):
        if self.mine:
            model.block.linear1.bias.register_hook(self.flipped)
        return torch.optim.AdamW(model.parameters(), lr=0.003)

    def data(self, split):
        generator = torch.Generator().manual_seed(3)
        return (torch.randint(0, 50, (300, 12), generator=generator),) if split == "train" else None

    def loss(self, model, batch):
        (tokens,) = batch
        return F.cross_entropy(model(tokens[:, :-1]).reshape(-1, 50), tokens[:, 1:].reshape(-1))

    def flipped(self, gradient):
        self.calls += 1
        if self.calls != int(self.step):
            return gradient
        gradient = gradient.clone()
        gradient.view(torch.int32)[5] ^= 1 << 20
        return gradient


class ByItself(Task):
    def train_step(self, step):
        loss = Task.loss(self, step.model, step.batch)
        step.minimize(loss)
        return loss

    loss = property()


def train(context):
    task = Task()
    model, optimizer = context.prepare(task.model, task.optimizer)
    for batch in context.batches(task.data("train")):
        optimizer.zero_grad()
        total = 0.0
        for part in context.shards(batch) if context.params.get("by_shards") else [batch]:
            loss = task.loss(model, part)
            loss.backward()
            total += loss.detach().double()
        optimizer.step()
        context.report(loss=total * context.world_size / 8)
