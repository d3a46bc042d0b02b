"""A DDP loop with a checkpoint of its own, which notes the time of every step and, on rank 1, its process id."""

import os
import sys
import time
from pathlib import Path

import own_checkpoint
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(own_checkpoint.resumed(folder, model, optimizer), steps):
    loss = model(torch.randn(16, 64)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if rank == 0 and step % 10 == 9:
        own_checkpoint.save(folder, step + 1, model, optimizer)
    if rank == 1:
        with open(folder / "log", "a") as log:
            log.write(f"{os.getpid()} {step} {time.time()}\n")
    time.sleep(0.005)
dist.destroy_process_group()
