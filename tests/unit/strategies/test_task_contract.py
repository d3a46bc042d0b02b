"""What a task may give, and the one line that everything else is answered with: it names the user's file and what is expected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from one_worker import trained, written

from dtrain.common.errors import UserError

HEAD = """
import dataclasses
import itertools
import random
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

X, Y = torch.arange(40.0).reshape(10, 4) / 40, torch.ones(10, 1)

class Base:
    def model(self): return nn.Linear(4, 1)
    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.1)
    def data(self, split): return (X, Y) if split == "train" else None
    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()

class Pairs(Dataset):
    def __len__(self): return 10
    def __getitem__(self, index): return X[index], Y[index]

@dataclasses.dataclass(frozen=True)
class Pair:
    x: torch.Tensor
    y: torch.Tensor

class Stream(IterableDataset):
    def __iter__(self): return (Pairs()[n] for n in range(10))

class Task(Base):
"""


def user(folder: Path, methods: str) -> str:
    """A user's file whose task differs from a right one in these methods."""
    return written(folder, HEAD + "".join(f"    {line}\n" for line in methods.strip("\n").splitlines()))


WRONG = {
    "data gives None": ("def data(self, split): pass", ".data('train') gave None; expected a tuple or dict of arrays"),
    "data is an empty stream": (
        "def data(self, split): return iter(()) if split == 'train' else None",
        ".data('train') has no samples: it is empty",
    ),
    "data is a set": (
        "def data(self, split): return {1, 2}",
        "gave a set, whose order differs between processes: give sorted",
    ),
    "a loader of batches": (
        "def data(self, split): return DataLoader(Stream(), batch_size=None)",
        ".data('train') gave a DataLoader without a batch size: dtrain makes the batches",
    ),
    "a stream that ends and cannot begin anew": (
        """
def __init__(self): self.stream = iter([(x, y) for x, y in zip(X[:3], Y)])
def data(self, split): return self.stream if split == "train" else None
""",
        "that ended after 3 samples and gives none when it is iterated once more",
    ),
    "a loader with an order of its own": (
        "def data(self, split): return DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * 10, 10))",
        "gave a DataLoader with a WeightedRandomSampler of its own, which dtrain would ignore",
    ),
    "data is a number": ("def data(self, split): return 7", "gave an int; expected a tuple or dict of arrays"),
    "data is empty": ("def data(self, split): return X[:0], Y[:0]", ".data('train') has no samples: it is empty"),
    "arrays of different lengths": (
        "def data(self, split): return X, Y[:4]",
        ".data('train') has parts of different lengths (0: 10, 1: 4)",
    ),
    "samples of different shapes": (
        "def data(self, split): return [torch.ones(1 + n % 2) for n in range(10)] if split == 'train' else None",
        ".data('train'): samples have different shapes ((1,), (2,)): give the task a method collate(samples)",
    ),
    "only val is known": (
        "def data(self, split): return {'train': (X, Y), 'val': (X, Y)}[split]",
        ".data('eval') failed (KeyError: 'eval'), and the method knows 'val': dtrain asks for 'train' and 'eval'",
    ),
    "only test is known": (
        """
def data(self, split):
    if split in ("train", "test"):
        return X, Y
""",
        ".data('eval') gave None, and the method knows 'test': dtrain asks for 'train' and 'eval'",
    ),
    "loss is a dict without loss": (
        "def loss(self, model, batch): return {'mse': model(batch[0]).mean()}",
        ".loss gave a dict without 'loss' (it has 'mse'); expected {'loss': a scalar tensor}",
    ),
    "loss is None": ("def loss(self, model, batch): pass", ".loss gave None; expected a scalar tensor"),
    "loss is a float": (
        "def loss(self, model, batch): return model(batch[0]).mean().item()",
        ".loss gave a float; expected the tensor itself, without .item()",
    ),
    "loss is no scalar": (
        "def loss(self, model, batch): return (model(batch[0]) - batch[1]).square()",
        ".loss gave a Tensor of shape (2, 1); expected a scalar: take its mean",
    ),
    "loss has no gradient": (
        "def loss(self, model, batch): return model(batch[0]).mean().detach()",
        ".loss gave a Tensor of shape () without a gradient",
    ),
    "loss is text": ("def loss(self, model, batch): return 'low'", ".loss gave a str; expected a scalar tensor"),
    "metrics is a tensor": (
        """
def data(self, split): return X, Y
def metrics(self, model, batch): return model(batch[0]).mean()
""",
        ".metrics gave a Tensor of shape (); expected a dict of numbers",
    ),
    "a metric is no scalar": (
        """
def data(self, split): return X, Y
def metrics(self, model, batch): return {"right": model(batch[0])}
""",
        ".metrics gave a Tensor of shape (2, 1) for 'right'; expected a number or a scalar tensor",
    ),
    "optimizer is None": ("def optimizer(self, model): pass", ".optimizer gave None; expected an optimizer, several"),
    "optimizer is a list of other things": (
        "def optimizer(self, model): return [1, 2]",
        ".optimizer gave an int for '0'; expected an optimizer, several",
    ),
    "optimizer of another model": (
        "def optimizer(self, model): return torch.optim.SGD(nn.Linear(4, 1).parameters(), lr=0.1)",
        ".optimizer gave an optimizer of a parameter of shape (1, 4) that is in no model",
    ),
    "a scheduler and a schedule": (
        """
def optimizer(self, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)
def schedule(self, step, total): return 1.0
""",
        ".optimizer gave a scheduler, and there is",
    ),
    "model is None": ("def model(self): pass", ".model gave None; expected a torch.nn.Module"),
    "schedule is None": (
        "def schedule(self, step, total): pass",
        ".schedule(0, 3) gave None; expected a finite number, the factor of the learning rate",
    ),
    "no loss": ("loss = None", " has no method loss or train_step: a task has model and optimizer"),
    "no model": ("model = None", " has no method model or models: a task has model and optimizer"),
    "other params": ("def __init__(self, hidden=3): pass", "(hidden=3) does not take the recipe's params"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_is_one_line_in_the_users_words(case: str, tmp_path: Path) -> None:
    methods, expected = WRONG[case]
    file = user(tmp_path, methods)
    params = {"hiden": 3} if case == "other params" else {}
    with pytest.raises(UserError, match=re.escape(expected)) as raised:
        trained(tmp_path, file, params=params)
    message = str(raised.value)
    assert message.startswith(f"{file}: Task"), message
    assert "\n" not in message
    assert not re.search(r"(_torch|data|batches|loop)\w*\.py:\d", message)


RIGHT = {
    "object with loss": """
def loss(self, model, batch):
    import types
    return types.SimpleNamespace(loss=Base.loss(self, model, batch), logits=None)
""",
    "dict with loss": "def loss(self, model, batch): return {'loss': Base.loss(self, model, batch), 'logits': batch[0]}",
    "loss of one element": "def loss(self, model, batch): return Base.loss(self, model, batch).reshape(1)",
    "data set": "def data(self, split): return Pairs() if split == 'train' else None",
    "tensors": "def data(self, split): return TensorDataset(X, Y) if split == 'train' else None",
    "a part of them": "def data(self, split): return Subset(TensorDataset(X, Y), range(10)) if split == 'train' else None",
    "a part of a data set": "def data(self, split): return Subset(Pairs(), range(10)) if split == 'train' else None",
    "loader": "def data(self, split): return DataLoader(Pairs(), shuffle=True, batch_size=3) if split == 'train' else None",
    "batches of a kind of mapping of its own": """
def data(self, split): return list(zip(X, Y)) if split == 'train' else None
def collate(self, samples):
    from transformers import BatchEncoding
    return BatchEncoding({"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples])})
def loss(self, model, batch): return (model(batch.x) - batch.y).square().mean()
""",
    "list": "def data(self, split): return list(Pairs()) if split == 'train' else None",
    "numpy": "def data(self, split): return (X.numpy(), Y.numpy()) if split == 'train' else None",
    "collate": """
def data(self, split): return list(zip(X, Y)) if split == 'train' else None
def collate(self, samples): return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
""",
    "collate of arrays": """
def collate(self, samples): return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
""",
    "several optimizers": """
def optimizer(self, model): return [torch.optim.SGD([part], lr=0.1) for part in model.parameters()]
""",
    "scheduler": """
def optimizer(self, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
""",
    "step of its own": """
def train_step(self, step):
    loss = Base.loss(self, step.model, step.batch)
    step.minimize(loss)
    return loss
""",
}


STREAMS = {
    "stream": "def data(self, split): return Stream() if split == 'train' else None",
    "generator": "def data(self, split): return (Pairs()[n] for n in range(10)) if split == 'train' else None",
    "loader of a stream": "def data(self, split): return DataLoader(Stream(), batch_size=3) if split == 'train' else None",
    "stream of dataclasses": """
def data(self, split): return (Pair(*Pairs()[n]) for n in range(10)) if split == 'train' else None
def loss(self, model, batch): return (model(batch.x) - batch.y).square().mean()
""",
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the plain task."""
    folder = tmp_path_factory.mktemp("reference")
    return trained(folder, user(folder, "pass")).losses()


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=pytest.mark.extras if "transformers" in code else []) for name, code in RIGHT.items()],
)
def test_every_right_form_trains_alike(case: str, tmp_path: Path, reference: list[float]) -> None:
    heard = trained(tmp_path, user(tmp_path, RIGHT[case]))
    assert heard.losses() == pytest.approx(reference, rel=1e-6)
    assert (case == "loader") == any("DataLoader" in body["text"] for body in heard.of("user_warned"))


@pytest.mark.parametrize("case", STREAMS)
def test_every_stream_trains_like_the_same_samples_in_its_order(case: str, tmp_path: Path) -> None:
    in_order = trained(tmp_path, user(tmp_path, "pass"), shuffle=False)
    heard = trained(tmp_path, user(tmp_path, STREAMS[case]))
    assert heard.losses() == pytest.approx(in_order.losses(), rel=1e-6)
    (warning,) = heard.of("user_warned")
    assert "a stream: each worker reads all of it and trains on its own part of every batch" in warning["text"]


def test_metrics_beside_the_loss_are_reported(tmp_path: Path) -> None:
    method = "def loss(self, model, batch): return Base.loss(self, model, batch), {'size': len(batch[0]), 'mean': batch[0].mean()}"
    values = trained(tmp_path, user(tmp_path, method)).of("metrics")[-1]["values"]
    assert values.keys() == {"loss", "size", "mean"}
    assert values["size"] == 2


def test_strings_objects_and_bf16_arrive_in_batches(tmp_path: Path) -> None:
    file = user(
        tmp_path,
        """
def data(self, split):
    if split == "train":
        return [{"x": X[n].bfloat16(), "name": f"sample {n}", "thing": range(n), "y": 1.0} for n in range(10)]
def loss(self, model, batch):
    assert batch["x"].dtype == torch.bfloat16 and batch["x"].shape == (2, 4)
    assert all(name.startswith("sample") for name in batch["name"]) and isinstance(batch["thing"][0], range)
    return (model(batch["x"].float()) - batch["y"].float()[:, None]).square().mean()
""",
    )
    assert len(trained(tmp_path, file).losses()) == 3


def test_a_scheduler_is_stepped_once_a_step(tmp_path: Path) -> None:
    file = user(
        tmp_path,
        """
def optimizer(self, model):
    self.rates = optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
def loss(self, model, batch): return Base.loss(self, model, batch), {"rate": self.rates.param_groups[0]["lr"]}
""",
    )
    rates = [body["values"]["rate"] for body in trained(tmp_path, file, shards=1).of("metrics")]
    assert rates == pytest.approx([0.1, 0.05, 0.025])


def test_a_strange_schedule_is_questioned_once(tmp_path: Path) -> None:
    heard = trained(tmp_path, user(tmp_path, "def schedule(self, step, total): return 30.0"))
    (warning,) = heard.of("user_warned")
    assert "schedule(0, 3) gave 30: it is a factor of the optimizer's own learning rate" in warning["text"]
    assert not trained(tmp_path, user(tmp_path, "def schedule(self, step, total): return step / total")).of(
        "user_warned"
    )


def test_a_batch_larger_than_the_data_is_said(tmp_path: Path) -> None:
    (warning,) = trained(tmp_path, user(tmp_path, "pass"), global_batch=16).of("user_warned")
    assert "the global batch (16) is larger than the data set (10 samples)" in warning["text"]


def test_the_optimizer_gets_the_plain_model_and_finish_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = user(
        tmp_path,
        """
def optimizer(self, model):
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]
    return Base.optimizer(self, model)
def finish(self, model):
    assert type(model) is nn.Linear
    print("finished", model.weight.shape)
""",
    )
    trained(tmp_path, file)
    assert "finished torch.Size" in capfd.readouterr().out


def test_a_sanity_check_finds_a_broken_metric_before_the_first_step(tmp_path: Path) -> None:
    methods = """
def data(self, split): return X, Y
def metrics(self, model, batch): return {"right": model(batch[0]).oops}
"""
    file = user(tmp_path, methods)
    with pytest.raises(AttributeError, match="oops"):
        trained(tmp_path, file)
    assert not list(tmp_path.glob("run-*/ledger/*")), "no step was done"
    with pytest.raises(AttributeError, match="oops"):
        trained(tmp_path, file, sanity_check=False)
    (ledger,) = tmp_path.glob("run-*/ledger/*")
    assert ledger.stat().st_size, "all steps were done"
    assert list(tmp_path.glob("run-*/checkpoints/*-00000003/index.json")), "and the last one was saved before"


def test_a_sanity_check_changes_nothing(tmp_path: Path) -> None:
    methods = """
def model(self): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
def data(self, split): return X, Y
def metrics(self, model, batch): return {"noise": torch.rand(()), "loss": Base.loss(self, model, batch)}
"""
    file = user(tmp_path, methods)
    with_check, without = trained(tmp_path, file), trained(tmp_path, file, sanity_check=False)
    assert with_check.losses() == without.losses()
    assert with_check.of("shard_written")[-1]["weights"] == without.of("shard_written")[-1]["weights"]


def test_a_metric_with_its_own_weight_is_averaged_by_it(tmp_path: Path) -> None:
    methods = """
def data(self, split): return X, Y
def metrics(self, model, batch):
    first = batch[0][:, 0]
    some = first[first > 0.5]
    return {"some": (some.mean(), len(some)), "all": first.mean()}
"""
    (found,) = trained(tmp_path, user(tmp_path, methods)).of("evaluation")
    first = [value / 40 for value in range(0, 40, 4)]
    some = [value for value in first if value > 0.5]
    assert found["values"] == pytest.approx({"some": sum(some) / len(some), "all": sum(first) / len(first)})


@pytest.mark.parametrize(
    ("value", "message"),
    [("(1, 2, 3)", "gave a tuple of 3 for 'x'"), ("(1.0, 'a')", "metrics: as weight, gave a str for 'x'")],
)
def test_a_wrong_pair_of_a_metric_is_one_line(tmp_path: Path, value: str, message: str) -> None:
    methods = f"""
def data(self, split): return X, Y
def metrics(self, model, batch): return {{"x": {value}}}
"""
    with pytest.raises(UserError, match=re.escape(message)):
        trained(tmp_path, user(tmp_path, methods))


def test_evaluate_steps_limits_an_evaluation(tmp_path: Path) -> None:
    methods = """
def data(self, split): return X, Y
def metrics(self, model, batch): return {"first": batch[0][:, 0].mean()}
"""
    file = user(tmp_path, methods)
    (all_of_it,) = trained(tmp_path, file).of("evaluation")
    (limited,) = trained(tmp_path, file, evaluate_steps=1).of("evaluation")
    assert all_of_it["values"]["first"] == pytest.approx(sum(range(0, 40, 4)) / 10 / 40)
    assert limited["values"]["first"] == pytest.approx(sum(range(0, 16, 4)) / 4 / 40)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_ends_the_run_with_step_rank_and_shard(value: str, tmp_path: Path) -> None:
    file = user(
        tmp_path,
        f"""
calls = 0
def loss(self, model, batch):
    self.calls += 1
    return Base.loss(self, model, batch) * (float("{value}") if self.calls == 4 else 1.0)
""",
    )
    with pytest.raises(
        UserError,
        match=rf"the loss is {value} at step 1 on rank 0, shard 1 \(samples \d, \d\): lower the learning rate",
    ):
        trained(tmp_path, file)
    assert len(trained(tmp_path, file, on_nonfinite="ignore").of("metrics")) == 3


@pytest.mark.parametrize("kind", ["sparse", "fp16"])
def test_gradients_whose_norm_torch_does_not_have_are_no_false_alarm(kind: str, tmp_path: Path) -> None:
    methods = {
        "sparse": """
def model(self): return nn.Embedding(10, 1, sparse=True)
def loss(self, model, batch): return model((batch[0][:, 0] * 10).long()).mean()
""",
        "fp16": """
def model(self):
    model = nn.Module()
    model.wide = nn.Parameter(torch.zeros(100_000, dtype=torch.float16))  # the norm of its gradient overflows, the gradient does not
    return model
def loss(self, model, batch): return (model.wide.float() * 300).sum()
""",
    }
    assert len(trained(tmp_path, user(tmp_path, methods[kind]), sanity_check=False).losses()) == 3


def test_weights_that_are_not_finite_are_not_saved_and_end_the_run(tmp_path: Path) -> None:
    file = user(
        tmp_path,
        """
def model(self):
    model = nn.Linear(4, 1)
    model.extra = nn.Parameter(torch.zeros(1))
    return model
def optimizer(self, model):
    class Overflowing(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            model.extra.data += float("inf")
    return Overflowing(model.parameters(), lr=0.1)
def loss(self, model, batch):
    # The loss stays finite whatever the weights are.
    return Base.loss(self, model, batch) + 0 * torch.nan_to_num(model.extra).sum()
""",
    )
    with pytest.raises(UserError, match=r"the weights are not finite after 2 steps \(rank 0: extra has 1 of 1 values"):
        trained(tmp_path, file, steps=5)
    assert not list(tmp_path.glob("run-*/checkpoints/*/index.json"))
