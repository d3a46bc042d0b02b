"""How the process group of a task or a function is connected."""

from __future__ import annotations

import pytest
import torch

from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.job.job import Job
from dtrain.launch import registry
from dtrain.strategies.torch.train.process_group import bound_device

GPU, CPU = torch.device("cuda", 1), torch.device("cpu")
TASK, FUNCTION = Job("a", task="t.py:T"), Job("a", function="f.py:f")


def test_a_task_on_gpus_connects_at_once_and_a_function_only_if_asked() -> None:
    assert bound_device(GPU, TASK, eager=None) == GPU
    assert bound_device(GPU, FUNCTION, eager=None) is None
    assert bound_device(GPU, FUNCTION, eager=True) == GPU
    assert bound_device(GPU, TASK, eager=False) is None
    assert bound_device(CPU, TASK, eager=None) is None


def test_collectives_that_are_checked_one_by_one_are_connected_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "detail")
    assert bound_device(GPU, TASK, eager=None) is None


def test_gloo_connects_ranks_when_they_first_need_it_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, rendezvous = registry.strategy("ddp", {}), RendezvousInfo(("127.0.0.1",), (1,), "a-run", 1)

    def lazy(ranks: int) -> str | None:
        return strategy.environment(RankInfo(0, ranks, 0, 8, 0, ranks // 8, 1), rendezvous).get("TORCH_GLOO_LAZY_INIT")

    assert (lazy(128), lazy(256)) == (None, "1")
    monkeypatch.setenv("TORCH_GLOO_LAZY_INIT", "0")
    assert lazy(256) is None
