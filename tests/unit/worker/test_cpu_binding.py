"""Which CPUs a worker is bound to, on a machine that sysfs describes; the one of two sockets is a fake, the other is this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gpus import gpus, gpus_here
from live import dtrain, finished, started

from dtrain.api.strategy import RankInfo
from dtrain.worker import cpu_binding
from dtrain.worker.cpu_binding import choice, ranges

ALL = set(range(16))


@pytest.fixture
def two_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """16 CPUs: cores 0 to 7, with their second threads 8 to 15; even cores are of socket 0, with two GPUs on each socket."""
    for cpu in ALL:
        core, folder = cpu % 8, tmp_path / f"devices/system/cpu/cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology/thread_siblings_list").write_text(f"{core},{core + 8}\n")
        (folder / f"node{core % 2}").mkdir()
    for number in range(4):
        device = tmp_path / f"bus/pci/devices/0000:{number:02x}:00.0"
        device.mkdir(parents=True)
        (device / "local_cpulist").write_text("0,2,4,6,8,10,12,14\n" if number < 2 else "1,3,5,7,9,11,13,15\n")
    monkeypatch.setattr(cpu_binding, "SYSFS", tmp_path)
    return tmp_path


def rank(local: int, of: int, replicas: int = 1) -> RankInfo:
    return RankInfo(local, of, local, of, 0, 1, replicas)


def test_a_rank_on_a_gpu_gets_the_cpus_next_to_it(tmp_path: Path, two_sockets: Path) -> None:
    with gpus_here(tmp_path, 4) as fakes:
        found, why = choice(rank(3, 4), ALL, on_gpus=True)
        assert (found, why) == ({1, 3, 5, 7, 9, 11, 13, 15}, f"next to GPU 3 ({fakes.uuids[3]})")
        assert choice(rank(0, 4), {0, 1, 2, 3}, on_gpus=True)[0] == {0, 2}, "of those that the node may use"
        assert choice(rank(0, 1, replicas=4), ALL, on_gpus=True)[0] == ALL


def test_a_gpu_of_which_nothing_is_known_binds_nobody(tmp_path: Path, two_sockets: Path) -> None:
    with gpus_here(tmp_path, 1) as fakes:
        fakes.change(0, bus="00000000:FF:00.0")
        found, why = choice(rank(0, 1), ALL, on_gpus=True)
        assert not found
        assert "does not say which of the node's CPUs are next to GPU 0" in why


def test_without_gpus_each_rank_gets_whole_cores_next_to_each_other(two_sockets: Path) -> None:
    found = [choice(rank(local, 4), ALL, on_gpus=False)[0] for local in range(4)]
    assert found == [{0, 8, 2, 10}, {4, 12, 6, 14}, {1, 9, 3, 11}, {5, 13, 7, 15}]
    assert choice(rank(0, 9), ALL, on_gpus=False) == (set(), "there are 8 cores for 9 workers")


def test_numbers_of_cpus_are_written_as_the_kernel_does() -> None:
    assert ranges({0, 1, 2, 3, 8, 10, 11}) == "0-3,8,10-11"


@pytest.mark.live
def test_workers_of_a_run_find_themselves_bound_and_plan_says_so(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("import os, sys\nprint('on', sorted(os.sched_getaffinity(0)))\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{script: p.py, resources: {workers: 2, numa: auto}, track: []}")
    live = finished(str(recipe), runs=tmp_path / "runs")
    if len(os.sched_getaffinity(0)) > 1:
        first, second = (live.output(number).partition("on [")[2] for number in range(2))
        assert first != second
        assert "dtrain: bound to the CPUs " in live.output(0)
    assert "bound to whole cores of its own (resources.numa)" in dtrain("plan", str(recipe)).stdout
    refused = dtrain("plan", str(recipe), "--nodes", "2", check=2).stderr
    assert "several nodes on one machine would be bound to the same CPUs" in " ".join(refused.split())


@pytest.mark.live
def test_on_gpus_whose_place_is_not_known_the_log_says_so(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("print('done')\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{script: p.py, resources: {device: gpu, numa: auto}, track: []}")
    with gpus(tmp_path, 1) as fakes:
        fakes.change(0, bus="0000FFFF:FF:1F.7")
        with started(["run", str(recipe)], tmp_path / "runs", fakes.environment()) as live:
            live.finish()
    assert "dtrain: not bound to CPUs (resources.numa): the system does not say" in live.output(0)
