"""Variables that every process of a node gets for its devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.agent import devices
from dtrain.common import gpu


def test_a_node_without_such_devices_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gpu.VISIBLE, raising=False)
    monkeypatch.setattr(gpu, "DEVICES", tmp_path)
    monkeypatch.setattr(devices, "INFINIBAND", tmp_path / "none")
    assert devices.settings() == {}


def test_a_node_with_gpus_and_network_cards_that_write_to_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gpu.VISIBLE, "0")
    monkeypatch.setattr(devices, "INFINIBAND", tmp_path)
    assert devices.settings() == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "RDMAV_FORK_SAFE": "1",
        "IBV_FORK_SAFE": "1",
    }
