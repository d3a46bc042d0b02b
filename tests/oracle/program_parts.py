"""Parts of drawn programs that are the same in each that has them."""

from __future__ import annotations

from grammar import Choices

ROWS = """
SIZE = {size}
X = np.random.default_rng(0).standard_normal((SIZE, 6))
X[:, -1] = np.arange(SIZE) / 100
Y = np.sin(X.sum(1, keepdims=True))
"""
HEAD = '''\
"""Drawn: {choices}."""

import json
import os

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from watch import Watch
'''
LOOKAHEAD = '''
class Lookahead(torch.optim.Optimizer):
    """Steps of SGD, and every third one halfway back to where they began; it counts its steps itself."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "steps": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] += 1
            for one in group["params"]:
                if one.grad is None:
                    continue
                slow = self.state[one].setdefault("slow", one.detach().clone())
                one -= group["lr"] * one.grad
                if group["steps"] % 3 == 0:
                    slow += 0.5 * (one - slow)
                    one.copy_(slow)
'''
SCHEDULE_FREE = '''
class ScheduleFree(torch.optim.Optimizer):
    """SGD that needs no schedule: gradients are taken between z and their average, which is what the model is evaluated with."""

    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    @torch.no_grad()
    def _mode(self, train):
        for group in self.param_groups:
            if group["train_mode"] != train:
                group["train_mode"] = train
                for one in group["params"]:
                    if "z" in self.state[one]:
                        one.lerp_(self.state[one]["z"], 1 - group["beta"] if train else 1 - 1 / group["beta"])

    def train(self):
        self._mode(True)

    def eval(self):
        self._mode(False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("the optimizer is not in train mode: call optimizer.train()")
            group["k"] += 1
            for one in group["params"]:
                if one.grad is None:
                    continue
                z = self.state[one].setdefault("z", one.detach().clone())
                one.lerp_(z, 1 / group["k"])
                one -= group["lr"] * (1 - group["beta"] * (1 - 1 / group["k"])) * one.grad
                z -= group["lr"] * one.grad
'''
DATA = {
    "arrays": "def make_data():\n    return X, Y\n",
    "map": "class Rows(Dataset):\n    def __len__(self):\n        return SIZE\n\n    def __getitem__(self, index):\n"
    "        return X[index], Y[index]\n\n\ndef make_data():\n    return Rows()\n",
    "noise": "class Rows(Dataset):\n    def __len__(self):\n        return SIZE\n\n    def __getitem__(self, index):\n"
    "        noisy = X[index] + 0.01 * np.random.standard_normal(6) + 0.01 * torch.randn(6).double().numpy()\n"
    "        noisy[-1] = X[index, -1]\n        return noisy, Y[index]\n\n\ndef make_data():\n    return Rows()\n",
    "stream": "class Rows(IterableDataset):\n    def __iter__(self):\n        return iter(zip(X, Y))\n\n\n"
    "def make_data():\n    return Rows()\n",
    "stateful": "class Rows(IterableDataset):\n    at = 0\n\n    def __iter__(self):\n        while self.at < SIZE:\n"
    "            self.at += 1\n            yield X[self.at - 1], Y[self.at - 1]\n        self.at = 0\n\n"
    "    def state_dict(self):\n        return {\"at\": self.at}\n\n    def load_state_dict(self, state):\n"
    "        self.at = state[\"at\"]\n\n\ndef make_data():\n    return Rows()\n",
    "loader": "def make_data():\n    return DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=4, shuffle=True)\n",
}  # fmt: skip
REGISTERED = {
    "counter": ("{'steps': self.steps}", "self.steps = state['steps']"),
    "numpy": (
        "{'total': np.float64(self.steps), 'all': np.arange(self.steps)}",
        "self.steps = int(state['total'])\n        assert (state['all'] == np.arange(self.steps)).all()",
    ),
    "set": ("{'seen': set(range(self.steps))}", "self.steps = len(state['seen'])"),
    "generator": (
        "{'steps': self.steps, 'state': self.generator.get_state()}",
        "self.steps = state['steps']\n        self.generator.set_state(state['state'])",
    ),
}
"""What the object gives as its state, and what it does with that."""
AVERAGE = '''\
class Average:
    """An average of the weights."""

    def __init__(self, model):
        self.weights = {name: one.detach().clone() for name, one in model.named_parameters()}

    @torch.no_grad()
    def update_parameters(self, model):
        for name, one in model.named_parameters():
            self.weights[name].lerp_(one.detach(), 0.1)

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights = {name: one.clone() for name, one in state["weights"].items()}
'''


def answer_of_loss(chosen: Choices, numbers: str, positive: str) -> str:
    """The expression that a task's `loss` returns, with the numbers beside the loss; `positive` says how many samples a masked loss counts."""
    result = "{'loss': loss}" if chosen["loss"] == "dict" else "loss"
    if chosen["loss"] == "masked":
        numbers = f"{{'weight': {positive}}} | ({numbers})"
    return f"{result}, {numbers}" if numbers != "{}" else result


def factor_of(chosen: Choices) -> str:
    """The task's `schedule`, if it has one."""
    method = "\n    def schedule(self, step, total_steps):\n        return min(1.0, (step + 1) / 5)\n"
    return method if chosen["place"] == "factor" else ""
