"""A DDP loop with a checkpoint of its own, which notes the time of every step and, on rank 1, its process id."""

import os
import sys
import time
from pathlib import Path

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
first = 0
if (folder / "state.pt").exists():
    first, weights, moments = torch.load(folder / "state.pt")
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
for step in range(first, steps):
    loss = model(torch.randn(16, 64)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if rank == 0 and step % 10 == 9:
        torch.save((step + 1, model.state_dict(), optimizer.state_dict()), folder / "aside.pt")
        os.replace(folder / "aside.pt", folder / "state.pt")
    if rank == 1:
        with open(folder / "log", "a") as log:
            log.write(f"{os.getpid()} {step} {time.time()}\n")
    time.sleep(0.005)
dist.destroy_process_group()
