"""A loss with a weight is the mean over what the weight counts, however a batch is divided among workers and passes."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path

import pytest
from live import PROGRAMS, Live, finished

STEPS, BATCH, CLIP = 8, 24, 0.3
OPTIONS = (
    "--set",
    f"train={{steps: {STEPS}, global_batch: {BATCH}, clip_norm: {CLIP}, shuffle: false, log_every: 1, evaluate_every: 4}}",
)
DIVIDED = {
    "one pass": ("--workers", "1"),
    "uneven": ("--workers", "3", "--set", "train.global_batch=23"),
    "accumulated": ("--workers", "2", "--set", "train.accumulate=3"),
    "micro-batches": ("--workers", "2", "--set", "train.micro_batch=5"),
    "exact": ("--workers", "2", "--set", "train.exact=true", "--set", "train.shards=4"),
    "sharded": ("--workers", "2", "--set", "strategy=fsdp"),
    "judged": ("--workers", "2", "--set", "train.on_nonfinite=skip"),
    "own step": ("--workers", "2", "--set", "task=masked.py:OwnStep"),
    "horovod": ("--workers", "2", "--set", "strategy=horovod", "--set", "train.accumulate=2"),
}


def trained(folder: Path, program: str, *options: str) -> Live:
    """A finished run of the masked task."""
    (folder / "r.yaml").write_text(
        f"task: {PROGRAMS / program}:Masked\nstrategy: {'mirrored' if 'tf' in program else 'ddp'}\ntrack: []\n"
        "train: {steps: 1}\ncheckpoint: {every_steps: 4}\n"
    )
    options = tuple(option.replace("=masked.py", f"={PROGRAMS / 'masked.py'}") for option in options)
    return finished(str(folder / "r.yaml"), *OPTIONS, *options, runs=folder / "runs")


@cache
def wanted(batch: int) -> list[float]:
    """The losses of a loop by hand, from the weights that dtrain begins with."""
    import torch

    masked = runpy.run_path(str(PROGRAMS / "masked.py"))
    torch.manual_seed(0)
    losses: list[float]
    losses, _ = masked["by_hand"](masked["Masked"]().model().state_dict(), STEPS, batch, CLIP)
    return losses


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.horovod) if name == "horovod" else name for name in DIVIDED]
)
def test_the_objective_is_the_mean_over_tokens_however_a_batch_is_divided(name: str, tmp_path: Path) -> None:
    live = trained(tmp_path, "masked.py", *DIVIDED[name])
    metrics = [event["values"] for event in live.events("metrics")]
    assert all("weight" not in values for values in metrics)
    held_out = [event["values"]["loss"] for event in live.events("evaluation")]
    assert len(held_out) == 2
    if name == "own step":  # what it reports itself is the mean over ranks
        one = trained(tmp_path, "masked.py", *DIVIDED["one pass"])
        assert held_out == pytest.approx([event["values"]["loss"] for event in one.events("evaluation")], rel=1e-4)
        return
    batch = 23 if name == "uneven" else BATCH
    assert [values["loss"] for values in metrics] == pytest.approx(wanted(batch), rel=1e-4)
    assert not live.events("user_warned")


@pytest.mark.parametrize("program", ["masked.py", pytest.param("masked_tf.py", marks=pytest.mark.tensorflow)])
def test_a_loss_that_is_no_mean_over_samples_and_has_no_weight_is_noticed(program: str, tmp_path: Path) -> None:
    live = trained(tmp_path, program, "--workers", "2", "--set", "params.weighted=false")
    (warned,) = live.events("user_warned")
    assert f"{program}: Masked.loss: of 24 samples it is 1." in warned["text"]
    assert 'return (loss, {"weight": tokens})' in warned["text"]


def test_the_look_at_the_loss_leaves_no_trace(tmp_path: Path) -> None:
    live = trained(tmp_path, "masked.py", "--workers", "2", "--set", "task=masked.py:Counting")
    assert "Counting.loss: of 24 samples" in live.events("user_warned")[0]["text"]
    unlooked = ("--set", "task=masked.py:Counting", "--set", "train.sanity_check=false")
    other = trained(tmp_path, "masked.py", "--workers", "2", *unlooked)
    first = live.events("metrics")[0]["values"]
    assert (first["buffer"], first["count"], first["seen"]) == (1.0, 1.0, 1.0)
    assert live.events("metrics")[0]["values"] == other.events("metrics")[0]["values"]


def test_one_worker_with_one_pass_divides_nothing(tmp_path: Path) -> None:
    live = trained(tmp_path, "masked.py", "--workers", "1", "--set", "params.weighted=false")
    assert not live.events("user_warned")


def test_exact_sums_give_the_same_bits_on_one_and_on_two_workers(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    exact = ("--set", "train.exact=true", "--set", "train.shards=4")
    one, two = (
        trained(folder, "masked.py", "--workers", workers, *exact)
        for folder, workers in zip(folders, ("1", "2"), strict=True)
    )
    assert one.weights() == two.weights()


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "options",
    [
        ("--workers", "2"),
        ("--set", "train.shards=4"),
        ("--workers", "2", "--set", "strategy=multi_worker_mirrored"),
        pytest.param(("--workers", "2", "--set", "strategy=horovod"), marks=pytest.mark.horovod),
    ],
    ids=["replicas", "shards", "processes", "horovod"],
)
def test_under_tensorflow(options: tuple[str, ...], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "divided")]
    for folder in folders:
        folder.mkdir()
    one = trained(folders[0], "masked_tf.py", "--workers", "1")
    divided = trained(folders[1], "masked_tf.py", *options)
    assert divided.losses() == pytest.approx(one.losses(), rel=1e-4)
    held_out = [[event["values"]["loss"] for event in live.events("evaluation")] for live in (one, divided)]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-4)
    assert not divided.events("user_warned")


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("RANK", "gave a weight on 1 of 2 ranks: give each loss one"),
        ("STEP", "gave no weight for the loss of this step and one before"),
    ],
)
def test_losses_with_a_weight_and_without_are_refused_at_once(when: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mixed.py").write_text(
        "import os\n\nimport torch\n\n\nclass Mixed:\n    passes = 0\n\n    def model(self):\n        return torch.nn.Linear(2, 1)\n\n"
        "    def optimizer(self, model):\n        return torch.optim.SGD(model.parameters(), lr=0.1)\n\n"
        "    def data(self, split):\n        return torch.ones(24, 2).numpy() if split == 'train' else None\n\n"
        "    def loss(self, model, batch):\n        self.passes += 1\n"
        "        loss = model(torch.as_tensor(batch)).mean()\n"
        "        plain = os.environ['RANK'] == '1' and (os.environ['WHEN'] == 'RANK' or self.passes > 4)\n"
        "        return loss if plain else (loss, {'weight': 3})\n"
    )
    (tmp_path / "r.yaml").write_text(
        f"task: mixed.py:Mixed\nstrategy: ddp\nresources: {{workers: 2}}\ntrack: []\nenv: {{WHEN: {when}}}\n"
        "train: {steps: 8, global_batch: 8, sanity_check: false}\nrecovery: {hang_seconds: 600}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs", code=1)
    assert words in live.events("failure_occurred")[0]["message"]
