"""The launcher of a script follows from what it imports, and what its workers are told does not grow with their square."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.job.job import Job, PluginChoice, ScriptModule
from dtrain.launch import planner, registry

TORCHRUN, TF_CONFIG, HOROVOD = "MASTER_ADDR", "TF_CONFIG", "HOROVOD_RANK"


def resolved(folder: Path, text: str, **options: object) -> Job:
    """The job of a script of this text."""
    (folder / "program.py").write_text(text)
    choice = PluginChoice("script", {"launcher": "auto"} | options)
    return planner.resolve(Job("x", script="program.py", strategy=choice, folder=str(folder)))


def told(job: Job, workers: int = 4) -> dict[str, str]:
    """The environment of rank 1."""
    rendezvous = RendezvousInfo(
        tuple(f"10.0.{n // 250}.{n % 250}" for n in range(workers)), (1000,) * workers, "run", 3, 7, 5
    )
    return registry.strategy_of(job).environment(RankInfo(1, workers, 1, workers, 0, 1, 1), rendezvous)


def asks_for_all(job: Job, workers: int = 8) -> bool:
    strategy = registry.strategy_of(job)
    return strategy.needs_all_addresses(workers)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("import torch", {TORCHRUN}),
        ("def f():\n    from torch.nn import Linear", {TORCHRUN}),
        ("import lightning, transformers", {TORCHRUN}),
        ("import tensorflow as tf", {TF_CONFIG}),
        ("import keras", {TF_CONFIG}),
        ("import horovod.torch as hvd, torch", {HOROVOD}),
        ("import horovod.tensorflow as hvd, tensorflow", {HOROVOD}),
        ("import torch, tensorflow", {TORCHRUN, TF_CONFIG, HOROVOD}),
        ("import numpy", {TORCHRUN, TF_CONFIG, HOROVOD}),
    ],
)
def test_the_launcher_follows_from_the_imports(tmp_path: Path, text: str, given: set[str]) -> None:
    job = resolved(tmp_path, text)
    assert told(job).keys() & {TORCHRUN, TF_CONFIG, HOROVOD} == given
    assert asks_for_all(job) == (TF_CONFIG in given)
    assert job.strategy.reason.startswith("a script for ")


def test_files_of_the_program_itself_are_looked_at_and_so_are_modules(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text("from mine.model import Model\n")
    (package / "model.py").write_text("import torch\n")
    assert resolved(tmp_path, "from mine import model\n").strategy.options["launcher"] == "torchrun"
    script = ScriptModule("mine.train")
    job = planner.resolve(Job("x", script=script, strategy=PluginChoice("script"), folder=str(tmp_path)))
    assert job.strategy.options["launcher"] == "torchrun"
    assert "torch" in registry.strategy_of(job).preload(job)


def test_a_launcher_that_is_named_stays(tmp_path: Path) -> None:
    job = resolved(tmp_path, "import torch", launcher="tensorflow")
    assert told(job).keys() & {TORCHRUN, TF_CONFIG, HOROVOD} == {TF_CONFIG}


def test_a_script_of_an_unknown_kind_can_be_started_on_ten_thousand_workers(tmp_path: Path) -> None:
    job = resolved(tmp_path, "print()")
    assert TF_CONFIG in told(job, workers=1000)
    assert TF_CONFIG not in told(job, workers=10_000), "the kernel would refuse a variable of that size"
    assert TF_CONFIG in told(resolved(tmp_path, "import tensorflow"), workers=10_000)
    assert asks_for_all(job, 1000)
    assert not asks_for_all(job, 10_000), "a list of all for everyone is quadratic"
    rank_zero = RendezvousInfo(("10.0.0.0",), (1000,), "run", 3, 7, 5)
    given = registry.strategy_of(job).environment(RankInfo(1, 10_000, 1, 8, 0, 1250, 1), rank_zero)
    assert TF_CONFIG not in given
    assert TORCHRUN in given


def test_torchruns_contract(tmp_path: Path) -> None:
    given = told(resolved(tmp_path, "import torch"))
    expected = {
        "TORCHELASTIC_MAX_RESTARTS": "5", "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "MASTER_ADDR": "10.0.0.0", "RANK": "1",
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected
    ours = registry.strategy("ddp", {}).environment(
        RankInfo(1, 2, 1, 2, 0, 1, 1), RendezvousInfo(("10.0.0.0",), (1000,), "run", 3)
    )
    assert given.keys() - ours.keys() >= {"TORCH_NCCL_ASYNC_ERROR_HANDLING"}, (
        "for tasks and functions, PyTorch's own default"
    )
