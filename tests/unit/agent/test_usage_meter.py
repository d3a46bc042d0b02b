"""How busy a node is, from /proc and NVIDIA's library, and how often that is logged."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpus import gpus_here

from dtrain.agent import usage_meter
from dtrain.agent.usage_meter import UsageMeter
from dtrain.record import event_log
from dtrain.record.event_log import EventLog
from dtrain.record.events import NodesUsed
from dtrain.supervisor.beside.usage_log import UsageLog


def test_processors_that_work_are_busy() -> None:
    before = usage_meter.cpu_times()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = usage_meter.cpu_times()
    ticks = os.sysconf("SC_CLK_TCK")
    assert 0.2 * ticks <= after[0] - before[0] <= after[1] - before[1]


def test_memory_in_use_is_a_part_of_what_there_is() -> None:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < usage_meter.memory_used()["memory_bytes"] < pages


def test_a_measurement_is_given_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_meter, "SECONDS", 0.05)
    meter = UsageMeter()
    meter.start()
    while not (taken := meter.take()):
        time.sleep(0.01)
    meter.stop()
    meter._thread.join()
    assert 0 <= taken["cpu"] <= 1
    meter.take()
    assert meter.take() == {}


def test_a_gpu_that_does_not_answer_is_left_out() -> None:
    class NVMLError(Exception):
        pass

    def handle(number: int) -> int:
        if number == 1:
            raise NVMLError
        return number

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=1 << 30),
    )
    found = usage_meter.gpus_used(library, 3)
    assert found == {"gpu0": 0.5, "gpu0_memory_bytes": 2**30, "gpu2": 0.5, "gpu2_memory_bytes": 2**30}


def test_a_worker_has_the_figures_of_the_gpu_that_its_uuid_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_meter, "SECONDS", 0.05)
    with gpus_here(tmp_path, 2) as fakes:
        fakes.change(1, busy=90, used=3_000_000)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{fakes.uuids[1]},MIG-1f2e")
        meter = UsageMeter()
        meter.start()
        while not meter.take():
            time.sleep(0.01)
        meter.stop()
        meter._thread.join()
        assert meter.of_gpu(0) == (0.9, 3.0)
        assert meter.of_gpu(1) == (None, None), "of a slice nothing is known"


def logged(path: Path, nodes: int, seconds: int) -> list[NodesUsed]:
    log = EventLog(path / "events.jsonl")
    usage = UsageLog(log)
    for now in range(0, seconds, 5):
        for node in range(nodes):
            usage.heard(f"node{node}", {"cpu": node / nodes}, float(now))
            usage.heard(f"node{node}", {}, now + 1.0)
    log.close()
    return [event for event in event_log.read(path / "events.jsonl") if isinstance(event, NodesUsed)]


def test_all_nodes_are_logged_together(tmp_path: Path) -> None:
    found = logged(tmp_path, nodes=3, seconds=100)
    assert 8 <= len(found) <= 11
    assert all(set(event.nodes) == {"node0", "node1", "node2"} for event in found[1:])


def test_of_many_nodes_the_mean_and_the_highest_are_logged(tmp_path: Path) -> None:
    found = logged(tmp_path, nodes=1000, seconds=30)
    assert found[-1].nodes["highest"] == {"cpu": 0.999}
    assert found[-1].nodes["mean"]["cpu"] == pytest.approx(0.4995, abs=1e-3)


def test_a_month_of_usage_is_no_large_log(tmp_path: Path) -> None:
    assert len(logged(tmp_path, nodes=1, seconds=30 * 86400)) < 10_000
