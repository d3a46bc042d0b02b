"""Training on this machine's GPUs, on one and on all of them: `make test-gpu`, or `python -m pytest tests -m gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from live import PROGRAMS, finished, killed

from dtrain.agent import devices
from dtrain.api.strategy import RankInfo
from dtrain.checkpoint.tensor_file import entries_of
from dtrain.strategies.torch.state.snapshot import Snapshots, file_of
from dtrain.strategies.torch.train.batches import Mover

GPUS = devices.gpus()
SIZES = sorted({1, GPUS} - {0})
RECIPE = str(PROGRAMS / "contract_torch.yaml")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no GPU here")]
STRATEGIES: list[tuple[str, list[str], float]] = [
    ("ddp", [], 1e-3),
    ("ddp", ["precision=bf16"], 0.2),
    ("ddp", ["compile=true"], 1e-3),
    ("fsdp", ["wrap=[Linear]"], 1e-3),
    ("fsdp", ["wrap=[Linear]", "precision=bf16"], 0.2),
]


@pytest.mark.parametrize("gpus", SIZES)
@pytest.mark.parametrize(("strategy", "options", "close"), STRATEGIES, ids=lambda value: str(value))
def test_losses_are_those_of_a_run_on_cpus(
    strategy: str, options: list[str], close: float, gpus: int, tmp_path: Path
) -> None:
    sets = [part for option in options for part in ("--set", f"strategy.{option}")]
    cpus = finished(RECIPE, "--workers", "1", "--set", "train.steps=10", runs=tmp_path / "cpus")
    live = finished(
        RECIPE, "--strategy", strategy, "--gpus", str(gpus), "--set", "train.steps=10", *sets, runs=tmp_path / "gpus"
    )
    for step, loss in cpus.losses().items():
        assert live.losses()[step] == pytest.approx(loss, rel=close), f"step {step}"
    live.assert_clean_audit(steps=10)


@pytest.mark.parametrize("gpus", SIZES)
def test_a_killed_worker_costs_no_bit(gpus: int, tmp_path: Path) -> None:
    options = (RECIPE, "--gpus", str(gpus), "--set", "params.pause=0.05")
    alone = finished(*options, runs=tmp_path / "alone")
    live = killed(*options, runs=tmp_path / "killed", step=7, rank=gpus - 1)
    assert live.weights() == alone.weights()
    assert [event["failure"] for event in live.events("failure_occurred")] == ["killed"]


@pytest.mark.parametrize("gpus", SIZES)
def test_a_script_finds_its_gpus(gpus: int, tmp_path: Path) -> None:
    recipe = tmp_path / "script.yaml"
    recipe.write_text(f"script: {PROGRAMS}/gpu_script.py\n")
    live = finished(str(recipe), "--gpus", str(gpus), runs=tmp_path / "runs")
    for rank in range(gpus):
        assert f"total {sum(range(gpus))} {rank}" in live.output(rank)


def faulty(tmp_path: Path, fault: str) -> Path:
    recipe = tmp_path / "faulty.yaml"
    text = (PROGRAMS / "contract_torch.yaml").read_text()
    text = text.replace("tiny_mlp.py:Mlp", f"{PROGRAMS}/gpu_faults.py:Faulty").replace("60", "5")
    recipe.write_text(f"{text}params: {{fault: {fault}, marker: {tmp_path}/marker}}\n")
    return recipe


def test_memory_of_the_device_that_is_short_has_its_class(tmp_path: Path) -> None:
    recipe = faulty(tmp_path, "out_of_memory")
    live = finished(str(recipe), "--gpus", str(GPUS), runs=tmp_path / "runs", code=1)
    assert [event["failure"] for event in live.events("failure_occurred")] == ["out of memory"]


def test_an_assertion_on_the_device_is_a_bug_and_never_tried_again_in_its_process(tmp_path: Path) -> None:
    recipe = faulty(tmp_path, "device_assert")
    live = finished(str(recipe), "--gpus", str(GPUS), runs=tmp_path / "runs", code=1)
    assert live.events("failure_occurred")[0]["failure"] == "bug"
    pids = (tmp_path / "marker").read_text().split()
    assert len(set(pids)) == len(pids)


@pytest.mark.skipif(GPUS < 2, reason="one GPU waits for nobody")
def test_a_hang_in_a_collective_is_found_and_survived(tmp_path: Path) -> None:
    live = finished(str(faulty(tmp_path, "hang")), "--gpus", str(GPUS), runs=tmp_path / "runs")
    assert [event["failure"] for event in live.events("failure_occurred")] == ["hang"]


@pytest.fixture
def group() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_snapshot_is_what_the_state_was_though_the_next_step_is_under_way(group: Any, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    weights = torch.arange(64 << 20, dtype=torch.float32, device=device)
    expected, snapshots = weights.cpu(), Snapshots(RankInfo(0, 1, 0, 1, 0, 1, 1), group, device)
    for number in range(3):
        snapshot = snapshots.take({"model": {"w": weights}}, {"model.w"})
        snapshots.wait()
        weights.add_(1)
        folder = tmp_path / str(number)
        folder.mkdir()
        snapshot.write(folder)
        (entry,) = entries_of(folder / file_of(0))
        data = (folder / file_of(0)).read_bytes()[entry.begin : entry.begin + entry.length]
        assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32), expected + number)


def test_batches_arrive_whole_while_the_device_is_busy() -> None:
    device = torch.device("cuda", 0)
    mover, large = Mover(device), torch.randn(2048, 2048, device=device)
    sums = []
    for number in range(50):
        large = (large @ large).clamp(-1, 1)
        sums.append((number, mover({"x": torch.full((1 << 20,), float(number))})["x"].mean()))
    assert all(float(found) == number for number, found in sums)


def test_data_workers_change_nothing(tmp_path: Path) -> None:
    one, other = (
        finished(
            RECIPE, "--gpus", str(GPUS), "--set", "train.steps=10", "--set", f"data.workers={number}",
            runs=tmp_path / str(number),
        )
        for number in (0, 2)
    )  # fmt: skip
    assert one.losses() == other.losses()
