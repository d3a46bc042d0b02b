"""A language model of Hugging Face whose weights alone no process of its run may hold: RLIMIT_DATA leaves each so much memory beyond what it
has when the task is made. Rank 0 kills itself once, when a checkpoint is there."""

import os
import resource
import signal
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

WIDTH, LAYERS, TOKENS = 512, 24, 256


class Unheld:
    def __init__(self, folder, room, kill_at=0):
        self.folder, self.kill_at, self.calls = Path(folder), kill_at, 0
        taken = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        limit = (int(taken.split()[1]) << 10) + room
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def model(self):
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=TOKENS, n_positions=8, n_embd=WIDTH, n_layer=LAYERS, n_head=2, loss_type="ForCausalLM"
            )
        )

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.01)

    def data(self, split):
        rows = torch.arange(64).reshape(8, 8)
        return {"input_ids": rows, "labels": rows} if split == "train" else None

    def loss(self, model, batch):
        self.calls += 1
        if self.calls == self.kill_at and os.environ["RANK"] == "0" and not (self.folder / "killed").exists():
            while not list(self.folder.glob("runs/*/checkpoints/step-*")):
                time.sleep(0.1)
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return model(**batch).loss
