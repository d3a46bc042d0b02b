"""A model that fits no process of its run: trained, saved, resumed and written for others under a limit of memory that is less than its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from live import PROGRAMS, dtrain, finished

import dtrain as library

ROOM = 270 << 20


def recipe(folder: Path, build: str) -> str:
    path = folder / f"{build}.yaml"
    path.write_text(
        f"task: {PROGRAMS}/unheld.py:Unheld\nparams: {{folder: {folder}, room: {ROOM}, kill_at: 3}}\ntrack: []\n"
        f"strategy: {{name: fsdp, build: {build}, wrap: [GPT2Block]}}\nresources: {{workers: 4, cpus_per_worker: 1}}\n"
        "train: {steps: 4, global_batch: 4}\ncheckpoint: {every_steps: 2, memory_every_steps: 0}\n"
        "recovery: {backoff_seconds: 0}\n"
    )
    return str(path)


def test_a_model_that_fits_no_process_is_trained_saved_resumed_and_left(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    live = finished(recipe(tmp_path, "meta"), runs=tmp_path / "runs")
    assert [event["step"] for event in live.events("attempt_started")] == [0, 2]
    dtrain("weights", str(live.run.path), "--to", "hub", cwd=tmp_path)
    weights = library.load(live.run.path)
    assert sum(value.nbytes for value in weights.values()) > ROOM
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "hub").state_dict()
    assert all(torch.equal(weights[name], value) for name, value in read.items())


def test_a_worker_that_makes_the_whole_of_it_ends_without_memory(tmp_path: Path) -> None:
    live = finished(recipe(tmp_path, "whole"), runs=tmp_path / "runs", code=1)
    assert any("can't allocate memory" in live.output(rank) for rank in range(4))
