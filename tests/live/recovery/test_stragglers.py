"""A rank that the others wait for is named while the run goes on, with what takes it so long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live import Live, dtrain, start

from dtrain.api.phases import own_seconds

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

def slow_node():
    # Whether this is the first worker of rank 1 in the run: it stands for those on a slow node.
    mark = os.environ.get("SLOW_MARK")
    if not mark or RANK != 1:
        return False
    with open(mark, "a+") as file:
        file.seek(0)
        first = not file.read()
        file.write("x")
    return first

SLOW_NODE = slow_node()

def loss(model, batch, where):
    if (where == "work" and RANK == 1) or SLOW_NODE:
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

KERAS = """
import os, time, keras, numpy as np, tensorflow as tf

def slowly(value):
    if os.environ["DTRAIN_RANK"] == "1":
        time.sleep(0.05)
    return value

class Task:
    def model(self):
        return keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    def optimizer(self, model):
        return keras.optimizers.SGD(1e-4)
    def data(self, split):
        return (np.ones((64, 8), "float32"), np.ones((64, 1), "float32")) if split == "train" else None
    def loss(self, model, batch):
        inputs, targets = batch
        inputs = tf.ensure_shape(tf.numpy_function(slowly, [inputs], tf.float32), inputs.shape)
        return tf.reduce_mean(tf.square(model(inputs) - targets))
"""


def recipe(folder: Path, what: str, *more: str) -> str:
    (folder / "slow.py").write_text(CODE)
    (folder / "slow_keras.py").write_text(KERAS)
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
        ("task: slow.py:Task", "fsdp", "forward"),
        ("task: slow.py:OwnStep\nparams: {where: data}", "ddp", "data"),
        ("function: slow.py:train", "horovod", "forward"),
        pytest.param("task: slow_keras.py:Task", "multi_worker_mirrored", "work", marks=pytest.mark.quiet),
    ],
    ids=["fsdp", "ddp-data", "horovod-function", "multi-worker-mirrored"],
)
def test_the_rank_that_the_others_wait_for_is_named(what: str, strategy: str, phase: str, tmp_path: Path) -> None:
    with start(recipe(tmp_path, what, f"strategy: {strategy}"), runs=tmp_path / "runs") as live:
        found = live.wait_event("straggler_found")
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
    assert max(rows, key=lambda rank: own_seconds(rows[rank]["phases"])) == 1
    assert rows[0]["phases"]["reduce"] > 0.035 > rows[1]["phases"]["reduce"]
    assert "a step" in dtrain("top", name).stdout


def test_a_slow_node_is_replaced_if_the_recipe_wants_it(tmp_path: Path) -> None:
    what = "task: slow.py:Task\nparams: {where: node}"
    text = recipe(tmp_path, what, "strategy: ddp", "recovery: {replace_stragglers: true}")
    two = ("--nodes", "2", "--set", "train.steps=400")
    with start(text, *two, runs=tmp_path / "runs", SLOW_MARK=str(tmp_path / "mark")) as live:
        live.finish()
    first, last = (event["nodes"] for event in live.events("attempt_started"))
    assert (first, last) == (["node0", "node1"], ["node0", "node2"])
    assert live.events("resize_requested")[0]["why"] == "node1 is replaced, since the others wait for rank 1"
    assert live.events("failure_occurred") == live.events("decision_made") == []
    live.assert_clean_audit(steps=400)


def test_a_rank_that_is_slow_everywhere_is_not_moved_again(tmp_path: Path) -> None:
    text = recipe(tmp_path, "task: slow.py:Task", "strategy: ddp", "recovery: {replace_stragglers: true}")
    with start(text, "--nodes", "2", runs=tmp_path / "runs") as live:
        said = live.wait_event("user_warned")["text"]
        dtrain("stop", str(live.run.path), "--now")
        live.finish(code=4)
    assert said == "rank 1 is slow on node2 as it was on node1: it is not the node"
    assert len(live.events("attempt_started")) == 2


def test_this_machine_alone_is_kept_and_nobody_moves_without_the_setting(tmp_path: Path) -> None:
    text = recipe(tmp_path, "task: slow.py:Task", "strategy: ddp", "recovery: {replace_stragglers: true}")
    with start(text, runs=tmp_path / "runs") as live:
        assert (
            live.wait_event("user_warned")["text"]
            == "the others wait for rank 1, and there is no other node than node0"
        )
        dtrain("stop", str(live.run.path), "--now")
        live.finish(code=4)
    assert len(live.events("attempt_started")) == 1
    text = recipe(tmp_path, "task: slow.py:Task", "strategy: ddp")
    with start(text, "--nodes", "2", "--set", "train.steps=300", runs=tmp_path / "runs2") as calm:
        calm.finish()
    assert calm.events("straggler_found") and len(calm.events("attempt_started")) == 1
