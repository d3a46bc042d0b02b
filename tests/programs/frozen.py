"""The contract's task for PyTorch with an optimizer that changes nothing: what a training begins with is what it ends with."""

import tiny_mlp
import torch


class Mlp(tiny_mlp.Mlp):
    def __init__(self, width=32):
        super().__init__()
        self.width = width

    def model(self):
        width = self.width
        layers = [
            torch.nn.Linear(8, 32),
            torch.nn.Tanh(),
            torch.nn.Linear(32, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, 1),
        ]
        return torch.nn.Sequential(*layers)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.0)
