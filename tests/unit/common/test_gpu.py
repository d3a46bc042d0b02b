"""Which GPU a number, a UUID or a slice in CUDA_VISIBLE_DEVICES means, with NVIDIA's library, the driver's files, or neither."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpus import gpus_here

from dtrain.common import gpu
from dtrain.common.gpu import Gpu


def test_uuids_and_their_beginnings_are_found_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpus_here(tmp_path, 3) as fakes:
        monkeypatch.setenv(gpu.VISIBLE, f"{fakes.uuids[2]},1,{fakes.uuids[0][:12]}")
        assert [gpu.number_of(rank) for rank in range(3)] == [2, 1, 0]
        assert gpu.name_of(1) == f"GPU 1 ({fakes.uuids[1]})"
        assert gpu.name_of(2) == f"GPU {fakes.uuids[0][:12]} ({fakes.uuids[0]})"


def test_a_slice_has_no_number_and_is_named_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpus_here(tmp_path, 1):
        monkeypatch.setenv(gpu.VISIBLE, "MIG-41b36db4-a1d3")
        assert gpu.number_of(0) is None
        assert gpu.name_of(0) == "GPU MIG-41b36db4-a1d3"
        assert gpu.visible() == [Gpu("MIG-41b36db4-a1d3", "MIG-41b36db4-a1d3")]


def test_devices_after_one_that_is_none_are_not_visible() -> None:
    assert gpu.named({gpu.VISIBLE: "1,-1,0"}) == ["1"]
    assert gpu.named({gpu.VISIBLE: ""}) == []
    assert gpu.named({}) is None


def test_without_the_library_the_drivers_files_tell_uuids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", tmp_path)
    for bus, uuid in (("0000:81:00.0", "GPU-second"), ("0000:01:00.0", "GPU-first")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(
            f"Model: \t\t NVIDIA H200\nGPU UUID: \t {uuid}\nBus Location: \t {bus}\n"
        )
    assert gpu.installed() == [Gpu("0", "GPU-first"), Gpu("1", "GPU-second")]


def test_with_neither_there_are_the_device_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", tmp_path)
    monkeypatch.setattr(gpu, "DEVICES", tmp_path)
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    assert list(map(str, gpu.installed())) == ["GPU 0", "GPU 1"]
