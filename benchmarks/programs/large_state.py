"""A model of a given size with AdamW, whose state is three times as large: as a task for dtrain's loop, as a loop by hand that
saves with `torch.save` or DCP's `async_save`, and as a process that loads a checkpoint of dtrain's.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

WIDTH = 1024
LAYER_BYTES = 3 * 4 * WIDTH * WIDTH
"""Of a layer and its two moments."""


class Large:
    """Regression on made-up numbers."""

    def __init__(self, megabytes):
        self.layers = max(2, round(megabytes * 1e6 / LAYER_BYTES))

    def model(self):
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(self.layers)))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=1e-4)

    def data(self, split):
        return np.random.default_rng(0).normal(size=(256, WIDTH)).astype(np.float32) if split == "train" else None

    def loss(self, model, batch):
        return model(batch).square().mean()


def by_hand(out, kind, megabytes, steps, every, device):
    """What a person would write for torchrun: the times of steps, and of each save its begin, end on the training thread, and
    the moment at which it was written."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.nn.parallel import DistributedDataParallel

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank, task = dist.get_rank(), Large(megabytes)
    model = DistributedDataParallel(task.model().to(device), gradient_as_bucket_view=True)
    optimizer = task.optimizer(model)
    batch = torch.as_tensor(task.data("train"))[rank * 8 : rank * 8 + 8].to(device)
    on_gpu = device == "cuda"  # without one, a copy in place is all that there is
    options = StagingOptions(
        use_pinned_memory=on_gpu, use_shared_memory=False, use_async_staging=on_gpu, use_non_blocking_copy=on_gpu
    )
    stager = DefaultStager(options)
    group, pending = dist.new_group(backend="gloo"), None
    saved = Path(out) / "saved.pt"
    first = 0
    if saved.exists():
        state = torch.load(saved, mmap=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    with open(f"{out}/steps-{rank}", "a") as times, open(f"{out}/saves-{rank}", "a") as saves:
        for step in range(first, steps):
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(step, time.time(), file=times, flush=True)
            if (step + 1) % every:
                continue
            if on_gpu:
                torch.cuda.synchronize()  # the steps before are not the save's
            began = time.time()
            state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            if kind == "async_save":
                if pending is not None:
                    pending.upload_completion.result() if hasattr(pending, "upload_completion") else pending.result()
                pending = dcp.async_save(
                    state, checkpoint_id=f"{out}/step-{step}", async_stager=stager, process_group=group
                )
            elif rank == 0:
                torch.save(state, f"{out}/aside")
                Path(f"{out}/aside").replace(saved)
            print(began, time.time(), file=saves, flush=True)
    if pending is not None:
        pending.result()
    dist.barrier()
    dist.destroy_process_group()


def load(folder, megabytes):
    """Seconds to load a checkpoint, and to read its bytes into memory."""
    import socket

    from dtrain.api.strategy import (
        RankInfo,
        RendezvousInfo,
        WorkerContext,
    )
    from dtrain.job.job import Job, PluginChoice, Train
    from dtrain.launch import registry

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    rendezvous = RendezvousInfo(("127.0.0.1",), (listener.getsockname()[1],), "load", 1)
    train = Train(steps=1, global_batch=8, shards=1)
    job = Job(name="load", task="x:Large", strategy=PluginChoice("ddp"), train=train, folder=folder)
    with registry.strategy("ddp", {}).join(
        WorkerContext(RankInfo(0, 1, 0, 1, 0, 1, 1), rendezvous, job, listener)
    ) as backend:
        backend.build(Large(megabytes), train)
        backend.load(Path(folder))  # imports what loading needs, and has the files in the kernel's memory
        began = time.perf_counter()
        backend.load(Path(folder))
        loaded = time.perf_counter() - began
    began = time.perf_counter()
    for path in Path(folder).iterdir():
        with open(path, "rb") as file:
            file.readinto(bytearray(path.stat().st_size))
    print(loaded, time.perf_counter() - began)


if __name__ == "__main__":
    if sys.argv[1] == "load":
        load(sys.argv[2], float(sys.argv[3]))
    else:
        by_hand(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
