"""A model of about a million parameters: as a task for dtrain's loop, and as the same loop written by hand."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Million:
    """Regression on made-up numbers; with a width of 4,750, it has 25 million parameters."""

    def __init__(self, width=768):
        self.width = width

    def model(self):
        width = self.width
        return nn.Sequential(
            nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 256)
        )

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
    # What a person would write for torchrun, or for horovodrun.
    import torch.distributed as dist
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    steps, batch, out, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    device = torch.device(sys.argv[5], int(os.environ["LOCAL_RANK"])) if sys.argv[5] == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    task = Million()
    torch.manual_seed(0)
    model = task.model().to(device)
    if kind == "horovod":
        import horovod.torch as hvd

        hvd.init()
        rank, world = hvd.rank(), hvd.size()
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        optimizer = hvd.DistributedOptimizer(task.optimizer(model), named_parameters=model.named_parameters())
    else:
        dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
        rank, world = dist.get_rank(), dist.get_world_size()
        if kind == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for layer in model:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer)
            fully_shard(model)
        else:
            from torch.nn.parallel import DistributedDataParallel

            model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = task.optimizer(model)
    data = TensorDataset(*(torch.as_tensor(part) for part in task.data("train")))
    sampler = DistributedSampler(data, world, rank)
    times, epoch = [], 0
    while len(times) < steps:
        sampler.set_epoch(epoch)
        epoch += 1
        loader = DataLoader(data, batch // world, sampler=sampler, drop_last=True, pin_memory=device.type == "cuda")
        for inputs, targets in loader:
            batch_here = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            loss = task.loss(model, batch_here)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.time())
    if rank == 0:
        Path(out).write_text("\n".join(map(str, times[:steps])))
    if kind != "horovod":
        dist.destroy_process_group()
