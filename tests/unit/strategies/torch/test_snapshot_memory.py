"""Memory that CUDA does not pin: snapshots are copied all the same, and it is said once. CUDA's runtime is the fake one here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dtrain.api.strategy import RankInfo
from dtrain.checkpoint.tensor_file import TensorEntry, laid_out
from dtrain.strategies.torch.state import snapshot as module
from dtrain.strategies.torch.state.snapshot import Snapshots, TensorBuffer, file_of

FILE = laid_out([TensorEntry("model.w", "F32", (6,))])


def runtime(code: int) -> SimpleNamespace:
    """CUDA's runtime, which answers so; it must not be told to unpin what it did not pin."""

    def unregister(address: int) -> int:
        assert code == 0
        return 0

    return SimpleNamespace(
        cudaHostRegister=lambda address, size, flags: code,
        cudaHostUnregister=unregister,
        cudaGetErrorString=lambda number: "OS call failed or operation not supported on this OS",
    )


@pytest.fixture
def group() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_memory_that_cannot_be_pinned_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime(304))
    monkeypatch.setattr(module, "_forget_cuda_error", lambda: forgotten.append(1))
    buffer = TensorBuffer(FILE, pinned=True)
    assert buffer.unpinned == "cudaHostRegister: OS call failed or operation not supported on this OS"
    assert forgotten == [1], "otherwise the next kernel would be taken for the cause"
    buffer.rooms[0].copy_(torch.arange(6.0))
    assert buffer.rooms[0].tolist() == [0, 1, 2, 3, 4, 5]
    buffer.close()


def test_pinned_memory_is_unpinned_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime(0))
    monkeypatch.setattr(torch.cuda, "check_error", lambda code: None)
    buffer = TensorBuffer(FILE, pinned=True)
    assert buffer.unpinned == ""
    buffer.close()


def test_it_is_said_once_whatever_the_number_of_snapshots(
    group: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime(304))
    snapshots = Snapshots(RankInfo(0, 1, 0, 1, 0, 1, 1), group, torch.device("cpu"))
    assert snapshots.remark() == ""
    monkeypatch.setattr(snapshots._buffers, "_make", lambda file: TensorBuffer(file, pinned=True))
    told = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        snapshots.take({"model": {"w": torch.arange(6.0)}}, set()).write(tmp_path / str(number))
        told.append(snapshots.remark())
    assert "cannot be pinned (cudaHostRegister: OS call failed" in told[0]
    assert told[1:] == ["", ""]
    assert (tmp_path / "2" / file_of(0)).stat().st_size > 24
