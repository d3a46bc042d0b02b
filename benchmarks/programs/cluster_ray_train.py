"""The loop of steps.py as Ray Train wants it: a function under TorchTrainer, which starts it again after a failure."""

import os
import sys
import time
from pathlib import Path

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn


def train(config):
    folder, rank = Path(config["folder"]), get_context().get_world_rank()
    torch.manual_seed(0)
    model = prepare_model(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    optimizer = torch.optim.AdamW(model.parameters())
    first = 0
    if (folder / "state.pt").exists():
        first, weights, moments = torch.load(folder / "state.pt")
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    for step in range(first, config["steps"]):
        loss = model(torch.randn(16, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # Not through Ray's own reports, for which all ranks wait: both sides do the same work a step.
        if rank == 0 and step % 10 == 9:
            torch.save((step + 1, model.state_dict(), optimizer.state_dict()), folder / "aside.pt")
            os.replace(folder / "aside.pt", folder / "state.pt")
        if rank == 1:
            with open(folder / "log", "a") as log:
                log.write(f"{os.getpid()} {step} {time.time()}\n")
        time.sleep(0.005)


folder, steps, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
TorchTrainer(
    train,
    train_loop_config={"folder": folder, "steps": steps},
    scaling_config=ScalingConfig(num_workers=workers),
    run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=5)),
).fit()
