"""A plain script in torchrun's style: it reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, trains with
DistributedDataParallel and knows nothing of dtrain."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

rank, local_rank, world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
if rank == 0:
    print(f"rendezvous at {os.environ['MASTER_ADDR']}, {world} workers, this one is local rank {local_rank}")
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

generator = torch.Generator().manual_seed(rank)
truth = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
for step in range(200):
    inputs = torch.randn(32, 4, generator=generator)
    loss = (model(inputs) - inputs @ truth.T).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if rank == 0 and step % 50 == 49:
        print(f"step {step + 1}: loss {loss.item():.6f}")
if rank == 0:
    print("learned", [round(value, 3) for value in model.module.weight[0].tolist()])
dist.destroy_process_group()
