"""A rank that the others wait for is named while the run goes on, with what takes it so long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live import Live, dtrain, start

CODE = """
import os, time, torch

RANK = int(os.environ.get("DTRAIN_RANK", 0))

class Data(torch.utils.data.Dataset):
    def __init__(self, slow):
        self.slow = slow
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if self.slow and RANK == 1:
            time.sleep(0.02)
        return torch.full((8,), float(index)), torch.ones(1)

def model():
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))

def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-4)

def loss(model, batch, where):
    if where == "work" and RANK == 1:
        time.sleep(0.05)
    inputs, targets = batch
    return (model(inputs) - targets).pow(2).mean()

class Base:
    def __init__(self, where="work"):
        self.where = where
    def model(self):
        return model()
    def optimizer(self, model):
        return optimizer(model)
    def data(self, split):
        return Data(self.where == "data") if split == "train" else None

class Task(Base):
    def loss(self, model, batch):
        return loss(model, batch, self.where)

class OwnStep(Base):
    def train_step(self, step):
        value = loss(step.model, step.batch, self.where)
        step.minimize(value)
        return value

def train(context):
    net, opt = context.prepare(model, optimizer)
    for batch in context.batches(Data(False)):
        value = loss(net, batch, "work")
        opt.zero_grad(); value.backward(); opt.step()
        context.report(loss=value)
"""


def recipe(folder: Path, what: str, *more: str) -> str:
    (folder / "slow.py").write_text(CODE)
    lines = (
        what,
        "resources: {workers: 2}",
        "train: {steps: 2000, global_batch: 4, log_every: 50}",
        "data: {workers: 0}",
        *more,
    )
    (folder / "r.yaml").write_text("\n".join(lines))
    return str(folder / "r.yaml")


@pytest.mark.parametrize(
    ("what", "strategy", "phase"),
    [
        ("task: slow.py:Task", "ddp", "work"),
        ("task: slow.py:OwnStep\nparams: {where: data}", "fsdp", "data"),
        ("function: slow.py:train", "horovod", "work"),
    ],
    ids=["ddp", "fsdp-data", "horovod-function"],
)
def test_the_rank_that_the_others_wait_for_is_named(what: str, strategy: str, phase: str, tmp_path: Path) -> None:
    with start(recipe(tmp_path, what, f"strategy: {strategy}"), runs=tmp_path / "runs") as live:
        found = live.wait_event("straggler")
        assert (found["rank"], found["phase"]) == (1, phase)
        assert found["seconds"] > 0.035 > found["usual_seconds"] / 2
        check_views(live)
        dtrain("stop", str(live.run.path), "--now")
        printed = live.finish(code=4)
    assert "WARNING: the others wait for rank 1 (node0): it" in printed
    (row,) = json.loads(dtrain("report", str(live.run.path), "--json").stdout)["stragglers"]
    assert row["cost_seconds"] > 1
    assert "ranks that the others waited for" in dtrain("report", str(live.run.path)).stdout


def check_views(live: Live) -> None:
    name = str(live.run.path)
    assert "the others wait for rank 1" in dtrain("status", name).stdout
    rows = {row["rank"]: row for row in json.loads(dtrain("top", name, "--json").stdout)}
    slow = max(rows, key=lambda rank: rows[rank]["data_seconds"] + (rows[rank]["own_seconds"] or 0.0))
    assert slow == 1
    assert "a step" in dtrain("top", name).stdout
