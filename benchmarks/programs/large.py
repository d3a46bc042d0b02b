"""A model of many equal blocks, as a task of dtrain's and, called by torchrun, as a loop by hand with `fully_shard`. Each rank writes the peak of
its resident memory in every phase to FOLDER/memory-RANK.jsonl."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

SAMPLES = 64


def note(folder, rank, phase):
    """Append the peak since the last call, in MB, and begin another one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {
        name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    with open(Path(folder) / f"memory-{rank}.jsonl", "a") as file:
        file.write(json.dumps({"phase": phase, "peak": values["VmHWM"], "shared": values["RssShmem"]}) + "\n")
    Path("/proc/self/clear_refs").write_text("5")


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Large:
    """Regression on made-up numbers."""

    def __init__(self, folder, width=1024, blocks=12, kill_at=0):
        self.folder, self.width, self.blocks, self.kill_at = folder, width, blocks, kill_at
        self.rank, self.calls = os.environ.get("RANK", "0"), 0
        note(folder, self.rank, "import")

    def model(self):
        return nn.Sequential(*(Block(self.width) for _ in range(self.blocks)))

    def optimizer(self, model):
        note(self.folder, self.rank, "start")
        return torch.optim.AdamW(model.parameters())

    def data(self, split):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(SAMPLES, self.width, generator=generator)

    def loss(self, model, batch):
        phase = "load" if self.calls == 0 else "checkpoint" if self.calls == 4 else "training"
        note(self.folder, self.rank, phase)
        self.calls += 1
        if self.kill_at and self.calls > self.kill_at and self.rank == "0":
            self.killed()
        return nn.functional.mse_loss(model(batch), batch)

    def metrics(self, model, batch):
        if self.calls:
            note(self.folder, self.rank, "end")
        return {"size": batch.square().mean()}

    def killed(self):
        """Once."""
        mark = Path(self.folder) / "killed"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, width, blocks, steps):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    task = Large(folder, width, blocks)
    model = task.model()
    for block in model:
        fully_shard(block)
    fully_shard(model)
    optimizer, data = task.optimizer(model), task.data("train")
    share = SAMPLES // dist.get_world_size()
    for _ in range(steps):
        loss = task.loss(model, data[dist.get_rank() * share :][:share])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    note(folder, task.rank, "training")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
