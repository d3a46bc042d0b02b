"""A task on a stream of made-up samples: `kind` says how it is written down, and whether it has a state."""

import random
import time
from pathlib import Path

import own_loop
import torch
from torch.utils.data import IterableDataset

SAMPLES = 101


def sample(number):
    picture = torch.randn(8, generator=torch.Generator().manual_seed(number))
    return {"x": picture + 0.1 * torch.randn(8), "y": float(number % 2)}


def note_read(reads):
    """One byte more in the file `reads`, if there is one."""
    if reads:
        with open(reads, "ab") as file:
            file.write(b".")


class Shuffled:
    """Another order in every epoch, from the global generator; `reads` is a file with a byte for each sample read."""

    def __init__(self, reads=""):
        self.reads = reads

    def __iter__(self):
        for number in random.sample(range(SAMPLES), SAMPLES):
            note_read(self.reads)
            yield sample(number)


class WithState(IterableDataset):
    """Torchdata's protocol."""

    def __init__(self, reads):
        self.reads = reads
        self.next = 0

    def __iter__(self):
        while self.next < SAMPLES:
            note_read(self.reads)
            self.next += 1
            yield sample(self.next - 1)
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def lines():
    """A generator that reads a file."""
    with open(Path(__file__)) as file:
        for number, line in enumerate(file):
            yield sample(number) | {"y": float(len(line) % 2)}


def hugging_face():
    import datasets

    rows = datasets.Dataset.from_dict({"number": list(range(SAMPLES))})
    return rows.to_iterable_dataset(num_shards=4).map(
        lambda row: {"x": [row["number"] / 100] * 8, "y": row["number"] % 2}
    )


class Task:
    def __init__(self, kind="shuffled", pause=0.0, reads=""):
        self.kind, self.pause, self.reads = kind, pause, reads

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.05)

    def data(self, split):
        reads = self.reads if split == "train" else ""
        if self.kind == "shuffled":
            return Shuffled(reads)
        if self.kind == "state":
            return WithState(reads)
        return lines() if self.kind == "generator" else hugging_face()

    def loss(self, model, batch):
        time.sleep(self.pause)
        x = torch.stack(batch["x"], dim=1) if isinstance(batch["x"], tuple) else batch["x"]
        return (model(x.float())[:, 0] - batch["y"].float()).square().mean()

    def metrics(self, model, batch):
        return {"error": self.loss(model, batch)}


def train(context):
    """The same in a loop of one's own."""
    own_loop.train(context, Task(**context.params))
