"""A model of 128 MB, whose weights no step changes; notes how much memory a rank takes to make it, and then until its first step."""

import json
import os
from pathlib import Path

import torch
from torch import nn

WHOLE_BYTES = 128 << 20


def model(layers=32):
    """Of equal layers, or of two that are as large as 32."""
    shapes = [(1024, 16384), (16384, 1024)] if layers == 2 else [(1024, 1024)] * layers
    return nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in shapes))


def resident_bytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


class Wide:
    def __init__(self, folder, layers=32):
        self.folder, self.layers, self.taken = Path(folder), layers, {}

    def begin(self):
        self.before = resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def note(self, name):
        self.taken[name] = resident_bytes("VmHWM") - self.before
        (self.folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(self.taken))

    def model(self):
        self.begin()
        return model(self.layers)

    def optimizer(self, model):
        self.note("made")
        self.begin()
        return torch.optim.SGD(model.parameters(), lr=0.0)

    def data(self, split):
        return torch.ones(8, 1024) if split == "train" else None

    def loss(self, model, batch):
        if "begun" not in self.taken:
            self.note("begun")
        return model(batch).square().mean()

    def finish(self, model):
        torch.save(model.state_dict(), self.folder / "whole.pt")
