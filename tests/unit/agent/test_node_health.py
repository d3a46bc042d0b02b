"""Limits and GPUs that a node warns about; NVIDIA's library, the kernel's log and the control groups are the fake ones here."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpus import FakeGpus, gpus, gpus_here
from live import started

from dtrain.agent import devices, node_health
from dtrain.agent.node_health import troubles
from dtrain.common import memory
from dtrain.inspect import node_checks

XIDS = """6,1042,88123,-;usb 1-1: new device
4,1043,99123,-;NVRM: Xid (PCI:0000:00:00): 31, pid=7, name=python, MMU Fault
4,1044,99124,-;NVRM: Xid (PCI:0000:01:00): 74, pid='<unknown>', name=<unknown>, NVLink: fatal error
4,1045,99125,-;NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
4,1046,99126,-;NVRM: Xid (PCI:0000:7f:00): 48, another user's GPU
"""


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpus]:
    """Two healthy GPUs, and no limits."""
    monkeypatch.setattr(node_health, "KERNEL_LOG", tmp_path / "kmsg")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    (tmp_path / "groups").write_text("0::/job\n")
    monkeypatch.setattr(memory, "FILE_SYSTEM", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)
    with gpus_here(tmp_path, 2) as found:
        for number in range(2):
            found.change(number, ecc=0, remapped=[1, 0, 0, 0], pages_pending=0, throttling=0x1)
        yield found


def told() -> list[str]:
    return [one.text for one in troubles(on_gpus=True)]


def test_a_healthy_node_has_no_troubles(two: FakeGpus) -> None:
    assert told() == []


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"ecc": 3}, "had 3 uncorrectable ECC errors"),
        ({"remapped": [0, 1, 1, 0]}, "has damaged rows to remap"),
        ({"remapped": [0, 1, 1, 1]}, "could not remap a damaged row"),
        ({"pages_pending": 1}, "has pages to retire"),
        ({"throttling": 0x48}, "is slowed down: hardware slowdown, heat"),
        ({"lost": True}, "does not answer: GPU is lost"),
    ],
)
def test_what_the_library_tells_of_a_gpu_is_named_with_it(two: FakeGpus, facts: dict[str, object], text: str) -> None:
    two.change(1, **facts)
    (found,) = told()
    assert found.startswith("GPU 1 ")
    assert text in found


def test_errors_of_the_hardware_in_the_kernels_log_are_told_once_for_each_gpu(two: FakeGpus, tmp_path: Path) -> None:
    (tmp_path / "kmsg").write_text(XIDS)
    (found,) = told()
    assert found.startswith(f"GPU 1 ({two.uuids[1]}) had Xid 79 since the machine was started: GPU has fallen off the")


def test_limits_of_locked_memory_cpus_and_processes(
    two: FakeGpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (8 << 20, 8 << 20))
    monkeypatch.setattr(devices, "cpus", lambda: 16)
    monkeypatch.setattr(devices, "INFINIBAND", tmp_path)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "pids.max").write_text("512\n")
    assert told() == [
        "8.39 MB at most (ulimit -l)",
        "2.5 of the 16 CPUs may be used at a time",
        "512 processes and threads at most",
    ]
    (tmp_path / "job" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pids.max").write_text("max\n")
    monkeypatch.setattr(devices, "INFINIBAND", tmp_path / "none")
    assert troubles(on_gpus=False) == []


def test_doctor_warns_of_the_same(two: FakeGpus) -> None:
    two.change(0, ecc=1)
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        (found,) = node_checks._health()
    assert (found.check, found.state) == ("gpu health", "warning")
    assert found.todo.startswith("Reset it")


@pytest.mark.live
def test_a_run_warns_at_its_start_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("import time\ntime.sleep(2)\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{script: p.py, resources: {device: gpu}, track: []}")
    with gpus(tmp_path, 1) as fakes:
        fakes.change(0, ecc=2)
        with started(["run", str(recipe)], tmp_path / "runs", fakes.environment()) as live:
            live.finish()
    (warning,) = [one["text"] for one in live.events("user_warned") if "ECC" in one["text"]]
    assert f"GPU 0 ({fakes.uuids[0]}) had 2 uncorrectable ECC errors since it was started: Reset it" in warning
