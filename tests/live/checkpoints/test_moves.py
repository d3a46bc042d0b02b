"""A checkpoint made by one strategy at one size loads in every other of its framework at every other size."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import PROGRAMS, finished, start, stopped, wait_for
from safetensors.numpy import load_file

import dtrain

RECIPE = str(PROGRAMS / "contract_torch.yaml")
SIZES = (1, 2, 4)
LAYOUTS = {
    "torch": [(strategy, size) for strategy in ("ddp", "fsdp", "hsdp", "horovod") for size in SIZES],
    "tensorflow": [
        *((strategy, size) for strategy in ("mirrored", "multi_worker_mirrored", "horovod") for size in SIZES),
        ("tpu", 1),
    ],
}
ALL = [(framework, *layout) for framework, layouts in LAYOUTS.items() for layout in layouts]


def options(strategy: str, size: int, framework: str = "torch") -> tuple[str, ...]:
    sharded = ("--set", "strategy.wrap_parameters=100") if strategy in ("fsdp", "hsdp") else ()
    groups = ("--set", "strategy.replicas=2") if strategy == "hsdp" and size == 4 else ()
    known = ("--set", "strategy.framework=tensorflow") if framework == "tensorflow" and strategy == "horovod" else ()
    rehearsal = ("--set", "strategy.rehearse=true") if strategy == "tpu" else ()
    return ("--strategy", strategy, "--workers", str(size), *sharded, *groups, *known, *rehearsal)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Framework → a checkpoint from every strategy at every size."""
    folders: dict[str, list[str]] = {framework: [] for framework in LAYOUTS}
    for framework, strategy, size in ALL:
        runs = tmp_path_factory.getbasetemp() / f"{framework}-{strategy}-{size}"
        recipe = str(PROGRAMS / f"contract_{framework}.yaml")
        live = finished(recipe, *options(strategy, size, framework), "--set", "train.steps=3", runs=runs)
        folders[framework].append(str(live.checkpoint(3)))
    return folders


@pytest.fixture(scope="module")
def expected(checkpoints: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What a single process reads in each of them."""
    return {
        framework: digests(framework, *LAYOUTS[framework][0], folders, tmp_path_factory.mktemp("expected"))
        for framework, folders in checkpoints.items()
    }


def digests(framework: str, strategy: str, size: int, folders: list[str], tmp_path: Path) -> dict[str, str]:
    recipe = tmp_path / "digests.yaml"
    lines = (PROGRAMS / f"contract_{framework}.yaml").read_text().splitlines()
    lines[1] = f"function: {PROGRAMS}/digests_{framework}.py:train"
    recipe.write_text("\n".join([*lines, f"params: {{folders: {json.dumps(folders)}}}", ""]))
    live = finished(str(recipe), *options(strategy, size, framework), runs=tmp_path / "runs")
    found = dict(re.findall(r"^digest (\S+) (\w+)$", live.output(0), flags=re.MULTILINE))
    assert len(found) == len(folders), live.output(0)
    return found


@pytest.mark.parametrize(("framework", "strategy", "size"), ALL)
def test_every_checkpoint_loads_here(
    framework: str,
    strategy: str,
    size: int,
    checkpoints: dict[str, list[str]],
    expected: dict[str, dict[str, str]],
    tmp_path: Path,
) -> None:
    assert digests(framework, strategy, size, checkpoints[framework], tmp_path) == expected[framework]


def by_hand(folder: str) -> dict[str, Any]:
    """The model's weights as they stand in a checkpoint's safetensors files, parts put together by the offsets in their names."""
    found: dict[str, Any] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        for name, array in load_file(path).items():
            if not name.startswith(("model.", "model/")):
                continue
            name, _, offsets = name[len("model.") :].partition("@")
            begins = [int(offset) for offset in offsets.split(",")] if offsets else [0] * array.ndim
            ends = [begin + size for begin, size in zip(begins, array.shape, strict=True)]
            before = found.get(name, np.zeros((0,) * array.ndim, array.dtype))
            whole = np.zeros([max(one, end) for one, end in zip(before.shape, ends, strict=True)], array.dtype)
            whole[tuple(map(slice, before.shape))] = before
            whole[tuple(map(slice, begins, ends))] = array
            found[name] = whole
    return found


@pytest.mark.parametrize("framework", list(LAYOUTS))
def test_plain_python_reads_every_checkpoint(framework: str, checkpoints: dict[str, list[str]]) -> None:
    for folder in checkpoints[framework]:
        weights, expected = dtrain.load(folder), by_hand(folder)
        assert weights.keys() == expected.keys()
        assert all(np.array_equal(np.asarray(weights[name]), expected[name]) for name in expected), folder


def test_the_checkpoints_are_not_all_alike(expected: dict[str, dict[str, str]]) -> None:
    """Summing in another order changes the last digits: equal digests for all would mean that nothing was loaded."""
    assert all(len(set(found.values())) > 1 for found in expected.values())


def test_a_run_moves_from_strategy_to_strategy_with_the_losses_of_a_single_process(tmp_path: Path) -> None:
    by_hand = subprocess.run(
        [sys.executable, str(PROGRAMS / "reference_torch.py"), "20", "32", "5", "0.5"],
        capture_output=True,
        text=True,
        check=True,
    )
    reference = json.loads(by_hand.stdout.splitlines()[-1])
    live = stopped(RECIPE, "--workers", "2", "--set", "params.pause=0.02", runs=tmp_path, step=4)
    for attempt, (strategy, workers) in enumerate([("fsdp", 4), ("horovod", 2), ("ddp", 1)], start=2):
        last = strategy == "ddp"
        with start(
            "last", "--set", f"strategy={strategy}", "--workers", str(workers), runs=tmp_path, command="resume"
        ) as again:
            again._run = live.run
            wait_for(lambda at=attempt: live.events("attempt_started")[-1]["attempt"] == at, "the next attempt")  # type: ignore[misc]
            if not last:
                again.wait_step(live.events("attempt_started")[-1]["step"] + 4, attempt=attempt)
                again.process.send_signal(signal.SIGINT)
            again.finish(code=0 if last else 4)
    losses = live.losses()
    for step, loss in enumerate(reference, start=1):
        assert losses[step] == pytest.approx(loss, rel=1e-5), f"step {step}"
    live.assert_clean_audit(steps=20)
