"""Data that is not what it was when the run began: refused, or said."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import dtrain, finished

TASK = """
import json, os
import numpy as np
import torch
class Task:
    def model(self): return torch.nn.Linear(1, 1)
    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=1e-4)
    def data(self, split):
        if split == 'train':
            rows = np.load('rows.npy')
            return (rows, rows) if FORM == 'arrays' else [(row, row) for row in rows]
    def loss(self, model, batch): return (model(batch[0]) - batch[1]).square().mean()

def train(context):
    task = Task()
    model, optimizer = context.prepare(task.model, task.optimizer)
    for batch in context.batches(task.data('train')):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
"""


@pytest.mark.parametrize(("form", "key"), [("arrays", "task: mine.py:Task"), ("list", "function: mine.py:train")])
def test_data_that_changed_since_the_run_began(form: str, key: str, tmp_path: Path) -> None:
    import numpy as np

    rows = np.arange(20, dtype=np.float32).reshape(-1, 1)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "mine.py").write_text(f"FORM = {form!r}\n{TASK}")
    (tmp_path / "r.yaml").write_text(
        f"{key}\nstrategy: ddp\ntrack: []\ncheckpoint: {{every_steps: 3}}\ntrain: {{steps: 9, until: 3, global_batch: 4}}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), "--workers", "2", runs=tmp_path / "runs")
    resume = ("resume", str(live.run.path), "--set", "train.until=null")

    np.save(tmp_path / "rows.npy", np.concatenate([rows, rows[:1]]))
    found = dtrain(*resume, check=1)
    assert "gives 21 samples, and gave 20 samples when the run began" in found.stderr + found.stdout

    np.save(tmp_path / "rows.npy", np.concatenate([rows[:-1], rows[:1]]))
    dtrain(*resume)
    assert [
        event for event in live.events("user_warned") if "gives other samples than when the run began" in event["text"]
    ]
