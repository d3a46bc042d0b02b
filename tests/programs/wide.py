"""A model of 128 MB in equal layers, whose weights no step changes; notes how much memory a rank takes for it."""

import json
import os
from pathlib import Path

import torch
from torch import nn

WHOLE_BYTES = 128 << 20


def model():
    return nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(32)))


def resident_bytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


class Wide:
    def __init__(self, folder):
        self.folder = Path(folder)

    def model(self):
        self.before = resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        return model()

    def optimizer(self, model):
        taken = {"taken": resident_bytes("VmHWM") - self.before}
        (self.folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(taken))
        return torch.optim.SGD(model.parameters(), lr=0.0)

    def data(self, split):
        return torch.ones(8, 1024) if split == "train" else None

    def loss(self, model, batch):
        return model(batch).square().mean()

    def finish(self, model):
        torch.save(model.state_dict(), self.folder / "whole.pt")
