"""A model of a given width, as a task of dtrain's and, called by torchrun, as a DDP loop with checkpoints of its own, which notes the time of
every step and, on rank 1, its process id."""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

SAMPLES = 4096


class Remembered:
    """Regression on made-up numbers; each step takes at least `pause` seconds."""

    def __init__(self, width=256, pause=0.02):
        self.width, self.pause = width, pause

    def model(self):
        return nn.Sequential(
            nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, self.width), nn.Linear(self.width, 10)
        )

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters())

    def data(self, split):
        if split != "train":
            return None
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(SAMPLES, 64, generator=generator), torch.randn(SAMPLES, 10, generator=generator))

    def loss(self, model, batch):
        time.sleep(self.pause)
        return nn.functional.mse_loss(model(batch[0]), batch[1])


def main(folder, steps, every, width, pause):
    import own_checkpoint
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo")
    rank, task = dist.get_rank(), Remembered(width, pause)
    torch.manual_seed(0)
    model = DistributedDataParallel(task.model())
    optimizer = task.optimizer(model)
    inputs, targets = task.data("train")
    for step in range(own_checkpoint.resumed(folder, model, optimizer), steps):
        chosen = torch.arange(step * 32 + rank * 16, step * 32 + rank * 16 + 16) % SAMPLES
        loss = task.loss(model, (inputs[chosen], targets[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step + 1) % every == 0:
            own_checkpoint.save(folder, step + 1, model, optimizer)
        if rank == 1:
            with open(folder / "log", "a") as log:
                log.write(f"{os.getpid()} {step + 1} {time.time()}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
