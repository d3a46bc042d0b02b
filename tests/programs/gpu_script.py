"""A program that knows nothing of dtrain: one sum over all GPUs."""

import os

import torch
import torch.distributed as dist

torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl")
total = torch.ones(1, device="cuda") * dist.get_rank()
dist.all_reduce(total)
print("total", int(total.item()), torch.cuda.current_device())
dist.destroy_process_group()
