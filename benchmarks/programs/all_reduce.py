"""Imports torch and sums one number over all ranks."""

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
number = torch.ones(1)
dist.all_reduce(number)
assert number.item() == dist.get_world_size()
dist.destroy_process_group()
