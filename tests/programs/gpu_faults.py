"""A task that fails on a GPU in one way or another, in the first attempt."""

import os
import time
from pathlib import Path

import torch
from tiny_mlp import Mlp

STEP = 3


class Faulty(Mlp):
    def __init__(self, fault, marker):
        super().__init__()
        self.fault, self.marker, self.steps = fault, Path(marker), 0

    def loss(self, model, batch):
        self.steps += 1
        if self.steps == STEP and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            with self.marker.open("a") as file:
                file.write(f"{os.getpid()}\n")
            getattr(self, self.fault)(batch[0].device)
        return super().loss(model, batch)

    def out_of_memory(self, device):
        torch.empty(1 << 44, dtype=torch.uint8, device=device)

    def device_assert(self, device):
        torch.nn.functional.embedding(
            torch.full((4,), 10, device=device), torch.zeros(2, 2, device=device)
        ).sum().item()

    def hang(self, device):
        if len(self.marker.read_text().splitlines()) == 1:
            time.sleep(3600)
