"""A task whose samples take time and are changed at random, and what can go wrong with one of them."""

import os
import random
import time
from pathlib import Path

import numpy as np
import own_loop
import torch


class Pictures:
    """Made-up pictures of 8 x 8 pixels; `bad` is a sample that raises, `deadly` one whose first fetch kills the process."""

    def __init__(self, seconds, bad, deadly, marker):
        self.seconds, self.bad, self.deadly, self.marker = seconds, bad, deadly, marker

    def __len__(self):
        return 97

    def __getitem__(self, index):
        time.sleep(self.seconds)
        if index == self.bad:
            raise ValueError(f"picture {index} is cut off")
        if index == self.deadly and not Path(self.marker).exists():
            open(self.marker, "w").close()
            os.kill(os.getpid(), 9)
        picture = torch.randn(8, 8, generator=torch.Generator().manual_seed(index)).roll(random.randrange(8), 1)
        if np.random.rand() < 0.5:
            picture = picture.flip(0)
        return {"picture": picture + 0.1 * torch.randn(8, 8), "label": index % 2}


class Task:
    def __init__(self, seconds=0.002, bad=-1, deadly=-1, marker="", pause=0.0):
        self.data_set = Pictures(seconds, bad, deadly, marker)
        self.pause = pause

    def model(self):
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2)
        )

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.05)

    def data(self, split):
        return self.data_set

    def loss(self, model, batch):
        time.sleep(self.pause)
        return torch.nn.functional.cross_entropy(model(batch["picture"]), batch["label"])

    def metrics(self, model, batch):
        return {"accuracy": (model(batch["picture"]).argmax(1) == batch["label"]).float().mean()}


def train(context):
    """The same in a loop of one's own."""
    own_loop.train(context, Task(**context.params))
