"""A task whose accuracy depends on its parameters; some of them make it fail."""

import torch
from torch import nn
from torch.nn import functional as F


class Tuned:
    def __init__(self, lr=0.01, width=8, dropout=0.0, fail="", log=""):
        if fail == "bug":
            raise ValueError("these parameters are nonsense")
        self.lr, self.width, self.dropout, self.fail = lr, width, dropout, fail
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(512, 8, generator=generator)
        self.labels = (self.inputs.sin().sum(1) > 0).long()

    def model(self):
        return nn.Sequential(nn.Linear(8, self.width), nn.ReLU(), nn.Dropout(self.dropout), nn.Linear(self.width, 2))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)

    def data(self, split):
        return (self.inputs[:384], self.labels[:384]) if split == "train" else (self.inputs[384:], self.labels[384:])

    def loss(self, model, batch):
        inputs, labels = batch
        loss = F.cross_entropy(model(inputs), labels)
        return loss * float("nan") if self.fail == "nan" else loss

    def metrics(self, model, batch):
        inputs, labels = batch
        scores = model(inputs)
        return {"loss": F.cross_entropy(scores, labels), "accuracy": (scores.argmax(1) == labels).float().mean()}
