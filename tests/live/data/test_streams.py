"""Runs on streams: killed, with data workers, and at another number of workers, they train on the same samples in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, RECIPES, Live, dtrain, finished, killed, start, stopped

from dtrain.drill.fault import Fault, encode

STEPS = 24
BATCH = 16
OPTIONS = (
    "--workers", "2", "--set", "checkpoint.every_steps=5", "--set", f"train.steps={STEPS}",
    "--set", f"train.global_batch={BATCH}", "--set", "train.log_every=1",
)  # fmt: skip


def recipe(folder: Path, target: str = "task: streams.py:Task") -> str:
    kind, _, name = target.partition(": ")
    (folder / "r.yaml").write_text(f"{kind}: {PROGRAMS / name}\nstrategy: ddp\n")
    return str(folder / "r.yaml")


def kind(name: str) -> tuple[str, ...]:
    return ("--set", f"params.kind={name}")


def assert_same(live: Live, undisturbed: Live) -> None:
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()
    assert live.events("evaluation")[-1]["values"] == undisturbed.events("evaluation")[-1]["values"]
    live.assert_clean_audit(steps=STEPS)


@pytest.mark.parametrize("name", ["shuffled", "state", "generator", "hugging_face"])
def test_a_killed_worker_leaves_no_trace_whatever_the_stream(name: str, tmp_path: Path) -> None:
    """The training goes through several epochs of the stream; data workers read it in the second run."""
    if name == "hugging_face":
        pytest.importorskip("datasets")
    alone = finished(recipe(tmp_path), *OPTIONS, *kind(name), runs=tmp_path / "alone")
    slow = ("--set", "params.pause=0.05", "--set", "data.workers=2")
    live = killed(recipe(tmp_path), *OPTIONS, *kind(name), *slow, runs=tmp_path / "killed", step=13, rank=0)
    assert len(live.events("failure_occurred")) == 1
    assert_same(live, alone)


def test_a_stream_with_a_state_is_not_read_from_its_beginning(tmp_path: Path) -> None:
    reads = {name: tmp_path / name for name in ("state", "shuffled")}
    for name, path in reads.items():
        options = (*OPTIONS, *kind(name), "--set", f"params.reads={path}", "--set", "params.pause=0.05")
        live = killed(recipe(tmp_path), *options, runs=tmp_path / f"runs-{name}", step=17, rank=1)
        (warning,) = {event["text"] for event in live.events("user_warned") if "a stream" in event["text"]}
        assert ("which takes time" in warning) == (name == "shuffled")
    total = {name: path.stat().st_size for name, path in reads.items()}
    assert total["shuffled"] - total["state"] >= 2 * 10 * BATCH, "two ranks skipped at least ten steps"


def test_a_function_reads_streams_too(tmp_path: Path) -> None:
    path = recipe(tmp_path, "function: streams.py:train")
    alone = finished(path, *OPTIONS, *kind("state"), runs=tmp_path / "alone")
    live = killed(
        path, *OPTIONS, *kind("state"), "--set", "params.pause=0.05", runs=tmp_path / "killed", step=13, rank=1
    )
    assert_same(live, alone)


@pytest.mark.parametrize("name", ["shuffled", "state"])
def test_another_number_of_workers_trains_on_the_same_samples(name: str, tmp_path: Path) -> None:
    options = (*OPTIONS, *kind(name), "--set", "train.shards=2")  # with it dropout does not depend on the workers
    alone = finished(recipe(tmp_path), *options, runs=tmp_path / "alone")
    live = stopped(recipe(tmp_path), *options, "--set", "params.pause=0.05", runs=tmp_path / "runs", step=8)
    dtrain("resume", str(live.run.path), "--workers", "1", "--set", "params.pause=0")
    live.assert_clean_audit(steps=STEPS)
    assert live.losses() == pytest.approx(alone.losses(), rel=1e-5)


def test_epochs_of_a_stream_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"task: {PROGRAMS / 'streams.py'}:Task\nstrategy: ddp\ntrain: {{epochs: 2}}\n")
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs", code=1)
    assert (
        "train.epochs needs data of a known length, and this is a stream"
        in live.events("failure_occurred")[0]["message"]
    )


def test_a_pipeline_of_tf_data_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Shuffled and changed at random by TensorFlow itself, over more than one epoch."""
    options = (str(RECIPES / "digits_tf_data.yaml"), "--set", "train.steps=60", "--set", "checkpoint.every_steps=5")
    alone = finished(*options, "--set", "data.workers=2", runs=tmp_path / "alone")
    warnings = [event["text"] for event in alone.events("user_warned")]
    assert any("gave a tf.data.Dataset, a stream" in text for text in warnings)
    assert any("no data workers are started: this stream cannot be begun anew" in text for text in warnings)
    live = killed(*options, runs=tmp_path / "killed", step=31, rank=0)
    assert live.weights() == alone.weights()
    live.assert_clean_audit(steps=60)


def test_batches_of_tf_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "batched.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(RECIPES)!r})\n"
        "from digits_tf_data import Digits\n"
        "class Batched(Digits):\n"
        "    def data(self, split): return super().data(split).batch(8).prefetch(2)\n"
    )
    (tmp_path / "r.yaml").write_text("task: batched.py:Batched\nstrategy: mirrored\ntrain: {steps: 20}\n")
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs", code=1)
    assert (
        "gave a tf.data.Dataset of batches: dtrain makes the batches" in live.events("failure_occurred")[0]["message"]
    )


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        ("Rows(range(rank, 64, 2))", "a stream whose first samples differ between the ranks: it is split by rank already"),
        ("list(Rows(range(64 - rank)))", "samples on this rank and other numbers on others"),
        ("list(Rows(range(rank, 64, 2)))", "samples that differ between the ranks, as many on each: it is split by rank already"),
        ("Rows(random.SystemRandom().sample(range(64), 64))", ""),
    ],
)  # fmt: skip
def test_data_that_is_split_by_rank_already_is_refused(data: str, refused: str, tmp_path: Path) -> None:
    """A stream in an order that nothing decides begins otherwise each time, on one rank, too: that it is split cannot be said."""
    (tmp_path / "split.py").write_text(
        "import os, random\n"
        "import torch\n"
        "rank = int(os.environ['RANK'])\n"
        "class Rows:\n"
        "    def __init__(self, numbers): self.numbers = numbers\n"
        "    def __iter__(self): return iter([{'x': torch.full((8,), one / 64), 'y': 0.0} for one in self.numbers])\n"
        "class Task:\n"
        "    def model(self): return torch.nn.Linear(8, 1)\n"
        "    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.1)\n"
        f"    def data(self, split): return {data} if split == 'train' else None\n"
        "    def loss(self, model, batch): return model(batch['x']).mean()\n"
    )
    (tmp_path / "r.yaml").write_text("task: split.py:Task\nstrategy: ddp\ntrain: {steps: 4, global_batch: 8}\n")
    live = finished(str(tmp_path / "r.yaml"), "--workers", "2", runs=tmp_path / "runs", code=1 if refused else 0)
    assert not refused or refused in live.events("failure_occurred")[0]["message"]
    assert bool(live.events("training_started")) != bool(refused)


@pytest.mark.parametrize("order", ["random.SystemRandom()", "random.Random(1)"])
def test_an_audit_knows_whether_a_stream_gave_the_same_samples_again(order: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import random, time\n"
        "import torch\n"
        "class Rows:\n"
        f"    def __iter__(self): return iter([torch.full((8,), one / 64) for one in {order}.sample(range(64), 64)])\n"
        "class Task:\n"
        "    def model(self): return torch.nn.Linear(8, 1)\n"
        "    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    def data(self, split): return Rows() if split == 'train' else None\n"
        "    def loss(self, model, batch):\n"
        "        time.sleep(0.05)\n"
        "        return model(batch).mean()\n"
    )
    (tmp_path / "r.yaml").write_text(
        "task: mine.py:Task\nstrategy: ddp\nresources: {workers: 2}\ntrain: {steps: 14, global_batch: 8}\n"
        "checkpoint: {every_steps: 5, memory_every_steps: 0}\nrecovery: {backoff_seconds: 0}\n"
    )
    live = killed(str(tmp_path / "r.yaml"), runs=tmp_path / "runs", step=8, rank=0)
    said = dtrain("audit", str(live.run.path), check=None)
    otherwise = "attempt 2 was given other samples by the stream than attempt 1"
    assert (otherwise in said.stdout, said.returncode != 0) == ("System" in order,) * 2, said


SHARDED = (
    "import os, torch\n"
    "class Rows:\n"
    "    def __init__(self, first, step, end): self.numbers = range(first, end, step)\n"
    "    def __iter__(self): return iter([{'x': torch.tensor([float(one)])} for one in self.numbers])\n"
    "class Task:\n"
    "    def __init__(self, split=True):\n"
    "        self.rank, self.ranks = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE'))\n"
    "        if not split: self.rank, self.ranks = 0, 1\n"
    "        self.seen = open(os.environ['SEEN'] + str(self.rank), 'a')\n"
    "    def model(self): return torch.nn.Linear(1, 1)\n"
    "    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=1e-4)\n"
    "    def data(self, split): return Rows(self.rank, self.ranks, 40 if split == 'train' else 9)\n"
    "    def loss(self, model, batch):\n"
    "        print(*map(int, batch['x'][:, 0].tolist()), file=self.seen, flush=True)\n"
    "        return model(batch['x']).square().mean()\n"
    "    def metrics(self, model, batch): return {'mean': batch['x'].mean()}\n"
)
"""A stream that is split by rank, and what each rank's loss is given."""


def sharded(folder: Path, *options: str, code: int = 0, **environment: Any) -> Live:
    (folder / "own.py").write_text(SHARDED)
    (folder / "r.yaml").write_text(
        "task: own.py:Task\nstrategy: ddp\ntrack: []\ndata: {sharded: true}\ncheckpoint: {every_steps: 2, memory_every_steps: 0}\n"
        "train: {steps: 7, global_batch: 6, log_every: 1}\nrecovery: {backoff_seconds: 0}\n"
    )
    with start(
        str(folder / "r.yaml"),
        "--workers",
        "2",
        *options,
        runs=folder / "runs",
        SEEN=str(folder / "seen"),
        **environment,
    ) as live:
        live.finish(code)
    return live


def test_each_worker_reads_its_own_stream_alone_and_goes_on_in_it(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    one = sharded(undisturbed)
    other = sharded(killed, DTRAIN_HOOKS="dtrain.drill.injection=" + encode((Fault("kill", 1, "step", 5),)))
    for rank in (0, 1):
        numbers = [int(word) for word in (undisturbed / f"seen{rank}").read_text().split()]
        assert numbers == [one % 40 for one in range(rank, 42, 2)]
    assert other.weights() == one.weights()
    assert len(other.events("attempt_started")) == 2
    held_out = one.events("evaluation")[-1]["values"]
    assert held_out == {"mean": 4.0}, "of nine samples, five on one rank and four on the other"
    text = dtrain(
        "resume", str(one.run.path), "--workers", "3", "--set", "train.steps=9", check=1, SEEN=str(tmp_path / "seen")
    ).stdout
    assert "is split by rank (data.sharded) among 2 workers, and there are 3 now" in text


def test_streams_that_are_not_split_are_refused_where_they_should_be(tmp_path: Path) -> None:
    live = sharded(tmp_path, "--set", "params.split=false", code=1)
    assert (
        "gave streams that begin alike on all ranks: data.sharded is for"
        in live.events("failure_occurred")[0]["message"]
    )
    assert not live.events("training_started")
