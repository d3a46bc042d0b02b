"""What a run on GPUs is told of a Horovod that was built without NCCL."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dtrain.job.job import Job, Resources
from dtrain.strategies.horovod.launcher import say_without_nccl


@pytest.mark.parametrize(
    ("rank", "nccl", "device", "said"),
    [(0, 0, "gpu", True), (1, 0, "gpu", False), (0, 2304, "gpu", False), (0, 0, "cpu", False)],
)
def test_it_is_said_once_on_gpus(
    *, rank: int, nccl: int, device: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    horovod = SimpleNamespace(rank=lambda: rank, nccl_built=lambda: nccl)
    resources = Resources(device="gpu") if device == "gpu" else Resources()
    say_without_nccl(horovod, Job("a", task="t.py:T", resources=resources))
    assert ("HOROVOD_GPU_OPERATIONS=NCCL" in capsys.readouterr().out) == said
