"""A plain script in torchrun's style with a checkpoint of its own; it knows nothing of dtrain."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

folder, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
dist.init_process_group("gloo")
rank = dist.get_rank()
state = torch.zeros(2)
if (folder / "state.pt").exists():
    state = torch.load(folder / "state.pt")
while state[0] < steps:
    part = torch.tensor([1.0, (rank + 1) * state[0].item()])
    dist.all_reduce(part)
    state += part / dist.get_world_size()
    if rank == 0:
        torch.save(state, folder / "aside.pt")
        os.replace(folder / "aside.pt", folder / "state.pt")
    with open(folder / f"steps-{rank}", "a") as file:
        file.write(f"{int(state[0])} {time.time()}\n")
    dist.barrier()
    time.sleep(pause)
print(f"rank {rank} of {dist.get_world_size()}: sum {state[1].item():.0f}")
dist.destroy_process_group()
