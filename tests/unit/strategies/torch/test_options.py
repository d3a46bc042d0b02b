"""Options of the PyTorch strategies: each one trains, and changes what it says it changes."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from live import PROGRAMS, Live, dtrain, finished
from one_worker import trained, written
from torch import nn

from dtrain.job.job import Resources
from dtrain.strategies.torch.train.ddp import DDP, DDPOptions, Replicated

RECIPE = str(PROGRAMS / "contract_torch.yaml")
SHORT = ("--workers", "2", "--set", "train.steps=10")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """DDP without an option."""
    return finished(RECIPE, "--strategy", "ddp", *SHORT, runs=tmp_path_factory.mktemp("plain"))


@pytest.mark.live
@pytest.mark.parametrize(
    ("strategy", "options", "close"),
    [
        ("ddp", ["static_graph=true", "bucket_mb=0.001"], 1e-5),
        ("ddp", ["precision=bf16"], 0.2),
        ("ddp", ["comm_hook=fp16_compress"], 0.05),
        ("ddp", ["comm_hook=powerSGD", "power_sgd_start=2", "power_sgd_rank=2"], 0.2),
        ("ddp", ["compile=true"], 1e-4),
        ("ddp", ["activation_checkpointing=[Tanh]"], 1e-5),
        ("ddp", ["activation_checkpointing=[Sequential]", "activation_checkpointing_keep=[matmul]"], 1e-5),
        ("fsdp", ["precision=bf16", "wrap=[Linear]"], 0.2),
        ("fsdp", ["wrap=[Linear]", "reshard_after_forward=false"], 1e-5),
        ("fsdp", ["wrap_parameters=100", "activation_checkpointing=[Tanh]"], 1e-5),
        ("fsdp", ["cpu_offload=true", "wrap=[Linear]"], 1e-5),
        pytest.param("horovod", ["compression=fp16", "fusion_mb=1", "cycle_ms=0.5"], 0.05, marks=pytest.mark.horovod),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_an_option_trains(strategy: str, options: list[str], close: float, plain: Live, tmp_path: Path) -> None:
    sets = [part for option in options for part in ("--set", f"strategy.{option}")]
    live = finished(RECIPE, "--strategy", strategy, *SHORT, *sets, runs=tmp_path)
    for step, loss in plain.losses().items():
        assert live.losses()[step] == pytest.approx(loss, rel=close), f"step {step}"
    if any("comm_hook" in option for option in options):
        assert live.losses() != plain.losses()


def test_options_are_checked_without_the_framework() -> None:
    failed = dtrain(
        "plan",
        RECIPE,
        "--set",
        "strategy.name=fsdp",
        "--set",
        "strategy.wrapp=[x]",
        "--set",
        "strategy.precision=fp8",
        check=2,
    )
    assert "unknown key 'wrapp'. Did you mean 'wrap'?" in failed.stderr
    assert "'fp32', 'bf16' or 'fp16'" in failed.stderr


@pytest.mark.live
def test_a_class_that_is_not_in_the_model_is_said_with_those_that_are(tmp_path: Path) -> None:
    live = finished(RECIPE, "--strategy", "fsdp", "--set", "strategy.wrap=[Block]", runs=tmp_path, code=1)
    assert (
        "no module of the class 'Block': it has Linear, Sequential, Tanh"
        in live.events("failure_occurred")[0]["message"]
    )


@pytest.mark.parametrize(
    ("options", "chosen", "reason"),
    [
        (["--workers", "1"], "ddp", "one worker"),
        (["--workers", "2"], "ddp", "2 workers"),
        (["--workers", "2", "--set", "strategy.parameters=7e9"], "fsdp", "112 GB"),
        (["--workers", "4", "--nodes", "2", "--set", "strategy.parameters=7e9"], "hsdp", "112 GB"),
    ],
)
def test_auto_chooses_and_says_why(options: list[str], chosen: str, reason: str) -> None:
    shown = json.loads(dtrain("plan", RECIPE, "--strategy", "auto", *options, "--json").stdout)
    assert shown["strategy"] == chosen
    assert reason in shown["reason"]


def test_fsdp_keeps_no_whole_gradients_between_two_passes(tmp_path: Path) -> None:
    """They are reduced to the worker's share after every pass, not after the last one alone."""
    file = written(
        tmp_path,
        """
        import torch

        class Task:
            def __init__(self):
                self.passes = 0

            def model(self):
                return torch.nn.Linear(4, 1)

            def optimizer(self, model):
                return torch.optim.SGD(model.parameters(), lr=0.1)

            def data(self, split):
                return torch.ones(8, 4) if split == "train" else None

            def loss(self, model, batch):
                if self.passes % 2:
                    for parameter in model.parameters():
                        assert type(parameter.grad).__name__ == "DTensor", parameter.grad
                self.passes += 1
                return model(batch).mean()
        """,
    )
    heard = trained(tmp_path, file, strategy="fsdp", shards=2, sanity_check=False)
    assert len(heard.losses()) == 3


@pytest.mark.live
def test_large_buffers_that_no_step_changes_are_not_sent(tmp_path: Path) -> None:
    """And one that a single rank has changed is as rank 0 has it, on all."""
    (tmp_path / "buffers.py").write_text(
        textwrap.dedent("""
        import torch
        import torch.distributed as dist

        SENT = []
        broadcast = dist.broadcast

        def counted(tensor, *arguments, **options):
            SENT.append(tensor.numel())
            return broadcast(tensor, *arguments, **options)

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(4, 1)
                self.register_buffer("mask", torch.ones(1_000_000))
                self.register_buffer("count", torch.zeros(3))

            def forward(self, inputs):
                if self.training and dist.get_rank() == 1:
                    self.count += 1
                return self.layer(inputs) * self.mask[0]

        class Task:
            def model(self):
                return Model()

            def optimizer(self, model):
                dist.broadcast = counted
                return torch.optim.SGD(model.parameters(), lr=0.1)

            def data(self, split):
                return torch.ones(8, 4)

            def loss(self, model, batch):
                assert not model.module.count.any(), model.module.count
                return model(batch).mean()

            def finish(self, model):
                print("sent", SENT.count(3), SENT.count(1_000_000), SENT.count(1_000_003))
        """)
    )
    (tmp_path / "r.yaml").write_text(
        "task: buffers.py:Task\nstrategy: ddp\nresources: {workers: 2}\ntrain: {steps: 10, global_batch: 4}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs")
    assert "sent 9 0 1\n" in live.output(0)


@pytest.mark.live
def test_large_buffers_may_come_later_and_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        textwrap.dedent("""
        import torch
        import torch.distributed as dist

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(4, 1)
                self.register_buffer("mask", torch.ones(1_000_000))
                self.register_buffer("mine", torch.zeros(3))
                self.calls = 0

            def forward(self, inputs):
                self.calls += self.training
                if self.calls == 4 and not hasattr(self, "late"):
                    self.register_buffer("late", torch.full((5,), float(dist.get_rank())), persistent=False)
                if self.training:
                    self.mine = torch.full((3,), float(dist.get_rank()))
                return self.layer(inputs) * self.mask[0]

        class Task:
            def __init__(self):
                self.steps = 0

            def model(self):
                return Model()

            def optimizer(self, model):
                return torch.optim.SGD(model.parameters(), lr=0.1)

            def data(self, split):
                return torch.ones(8, 4) if split == "train" else None

            def loss(self, model, batch):
                self.steps += 1
                if self.steps > 4:
                    assert not model.module.late.any(), model.module.late
                if self.steps > 2:
                    assert not model.module.mine.any(), model.module.mine
                return model(batch).mean()
        """)
    )
    (tmp_path / "r.yaml").write_text(
        "task: late.py:Task\nstrategy: ddp\nresources: {workers: 2}\ntrain: {steps: 10, global_batch: 4}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs")
    assert live.events("run_ended")[0]["exit_code"] == 0


def test_batch_norm_takes_its_statistics_over_all_workers_where_torch_can() -> None:
    strategy = DDP(DDPOptions(sync_batch_norm=True))
    assert not strategy.problems(Resources(device="gpu"))
    assert "is for GPUs" in strategy.problems(Resources())[0]
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    kinds = [type(module) for module in Replicated(strategy.options, world_size=1).wrap(model, torch.device("cpu"))]
    assert kinds == [nn.Linear, nn.SyncBatchNorm]


def test_how_gradients_are_sent_is_said_once() -> None:
    assert DDPOptions(compression="bf16").hook() == "bf16_compress"
    both = DDP(DDPOptions(compression="bf16", comm_hook="powerSGD"))
    assert "leave out one of them" in both.problems(Resources())[0]
