"""Sharded models: no rank holds the whole of one, and its weights are those that one worker alone draws."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch
from live import PROGRAMS, Live, finished
from safetensors.torch import save_file

SEED = 7
MOST_BYTES = 32 << 20
"""Beside a rank's part of the weights, while it reads them; a tensor has twice as many."""


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wide", PROGRAMS / "wide.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(folder: Path, runs: Path, more: str = "", layers: int = 32) -> Live:
    recipe = folder / "wide.yaml"
    recipe.write_text(
        f"task: {PROGRAMS}/wide.py:Wide\nparams: {{folder: {folder}, layers: {layers}}}\nstrategy: {{name: fsdp, build: meta}}\n"
        f"track: []\nresources: {{workers: 2}}\ntrain: {{steps: 1, global_batch: 4, seed: {SEED}}}\n{more}\n"
    )
    return finished(str(recipe), runs=runs)


def taken(folder: Path, what: str) -> int:
    """The most that a rank took."""
    return max(int(json.loads((folder / f"rank-{rank}.json").read_text())[what]) for rank in range(2))


def assert_whole(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = torch.load(folder / "whole.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_rank_takes_memory_for_its_part_alone_and_the_weights_are_those_of_one_worker(tmp_path: Path) -> None:
    run_of(tmp_path, tmp_path / "runs")
    wide = program()
    assert taken(tmp_path, "made") < 0.85 * wide.WHOLE_BYTES, "a part is half of it"
    torch.manual_seed(SEED)
    assert_whole(tmp_path, wide.model().state_dict())


def test_a_rank_reads_its_own_rows_of_the_weights_that_a_run_begins_with(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = program().model(2)
    expected = {name: torch.rand_like(value) for name, value in model.state_dict().items()}
    (source / "config.json").write_text("{}")
    weight_map = {name: f"model-{number}.safetensors" for number, name in enumerate(expected)}
    for name, file in weight_map.items():
        save_file({name: expected[name]}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    live = run_of(tmp_path, tmp_path / "runs", f"init_from: {source}", layers=2)
    assert taken(tmp_path, "begun") < MOST_BYTES
    assert_whole(tmp_path, expected)
    run_of(tmp_path, tmp_path / "more", f"init_from: {live.run.path}", layers=2)
    assert taken(tmp_path, "begun") < MOST_BYTES, "of a run's checkpoint"
    assert_whole(tmp_path, expected)
