"""Sharded models: no rank holds the whole of one, and its weights are those that one worker alone draws."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch
from live import PROGRAMS, finished

SEED = 7


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wide", PROGRAMS / "wide.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rank_takes_memory_for_its_part_alone_and_the_weights_are_those_of_one_worker(tmp_path: Path) -> None:
    recipe = tmp_path / "wide.yaml"
    recipe.write_text(
        f"task: {PROGRAMS}/wide.py:Wide\nparams: {{folder: {tmp_path}}}\nstrategy: {{name: fsdp, build: meta}}\ntrack: []\n"
        f"resources: {{workers: 2}}\ntrain: {{steps: 1, global_batch: 4, seed: {SEED}}}\n"
    )
    finished(str(recipe), runs=tmp_path / "runs")
    wide = program()
    taken = [json.loads((tmp_path / f"rank-{rank}.json").read_text())["taken"] for rank in range(2)]
    assert max(taken) < 0.75 * wide.WHOLE_BYTES
    torch.manual_seed(SEED)
    expected = wide.model().state_dict()
    found = torch.load(tmp_path / "whole.pt")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
