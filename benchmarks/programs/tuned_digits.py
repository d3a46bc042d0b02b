"""Handwritten digits for benchmarks of tuning: as a task, and as the loop that one writes by hand."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

STEPS, EVERY, BATCH = 810, 30, 64


class Digits:
    def __init__(self, lr=1e-3, hidden=64, dropout=0.1):
        self.lr, self.hidden, self.dropout = lr, hidden, dropout
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16, dtype=torch.float32)
        self.labels = torch.tensor(labels)
        self.held_out = torch.arange(len(labels)) % 5 == 0

    def model(self):
        layers = [nn.Linear(64, self.hidden), nn.ReLU(), nn.Dropout(self.dropout)]
        layers += [nn.Linear(self.hidden, self.hidden), nn.ReLU(), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(self.hidden, 10))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.lr)

    def data(self, split):
        chosen = self.held_out if split == "eval" else ~self.held_out
        return self.images[chosen], self.labels[chosen]

    def loss(self, model, batch):
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def metrics(self, model, batch):
        images, labels = batch
        return {"accuracy": (model(images).argmax(1) == labels).float().mean()}


def by_hand(values, report):
    """Train; `report(step, accuracy)` at every evaluation says whether to stop."""
    task = Digits(**values)
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model)
    images, labels = task.data("train")
    step = 0
    while True:
        for chosen in torch.randperm(len(labels)).split(BATCH):
            if len(chosen) < BATCH:
                continue
            optimizer.zero_grad()
            task.loss(model, (images[chosen], labels[chosen])).backward()
            optimizer.step()
            step += 1
            if step % EVERY == 0:
                model.eval()
                with torch.no_grad():
                    accuracy = float(task.metrics(model, task.data("eval"))["accuracy"])
                model.train()
                if report(step, accuracy) or step == STEPS:
                    return
