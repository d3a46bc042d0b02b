"""A small task whose data has two classes."""

import torch
from torch import nn


class Blobs:
    def model(self):
        return nn.Linear(8, 2)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    def data(self, split):
        inputs = torch.randn(256, 8, generator=torch.Generator().manual_seed(len(split)))
        return inputs.numpy(), (inputs.sum(1) > 0).long().numpy()

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])
