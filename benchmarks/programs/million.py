"""A model of about a million parameters: as a task for dtrain's loop, and as the same loop written by hand."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Million:
    """Regression on made-up numbers."""

    def model(self):
        return nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 256))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=1e-3)

    def data(self, split):
        if split == "eval":
            return None
        numbers = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float32)
        return numbers, numbers[:, ::-1].copy()

    def loss(self, model, batch):
        return F.mse_loss(model(batch[0]), batch[1])


if __name__ == "__main__":
    # What a person would write for torchrun.
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    steps, batch, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo")
    task = Million()
    torch.manual_seed(0)
    model = DistributedDataParallel(task.model(), gradient_as_bucket_view=True)
    optimizer = task.optimizer(model)
    data = TensorDataset(*(torch.as_tensor(part) for part in task.data("train")))
    sampler = DistributedSampler(data)
    each = batch // dist.get_world_size()
    times, epoch = [], 0
    while len(times) < steps:
        sampler.set_epoch(epoch)
        epoch += 1
        for inputs, targets in DataLoader(data, each, sampler=sampler, drop_last=True):
            loss = task.loss(model, (inputs, targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.time())
    if dist.get_rank() == 0:
        Path(out).write_text("\n".join(map(str, times[:steps])))
    dist.destroy_process_group()
