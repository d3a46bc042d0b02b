"""The kernel's OOM killer ends a rank for real, in a control group with little memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, wait_for
from warm import COLD

from dtrain.job.failure_kinds import FailureKind
from dtrain.record import event_log
from dtrain.record.events import AttemptStarted, CheckpointSaved, FailureOccurred
from dtrain.record.folder import all_runs

LIMIT = 900_000_000
CODE = """
import os, sys
sys.path.insert(0, {programs!r})
import torch
from tiny import Tiny

class Hungry(Tiny):
    held = []
    def loss(self, model, batch):
        if os.environ["RANK"] == "1":
            self.held.append(torch.ones(5_000_000))
        return super().loss(model, batch)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this limit, of either version of Linux's."""
    first = Path("/sys/fs/cgroup/memory")
    parent, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    made = parent / f"dtrain-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / limit).write_text(str(LIMIT))
    except OSError as error:
        with suppress(OSError):
            made.rmdir()
        pytest.skip(f"no control group for memory can be made here: {error}")
    yield made
    wait_for(lambda: removed(made), "the end of all processes of the run")


def removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def test_a_rank_that_takes_all_memory_is_named_and_not_tried_again(group: Path, tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(CODE.format(programs=str(PROGRAMS)))
    text = (PROGRAMS / "tiny.yaml").read_text().replace("tiny.py:Tiny", "hungry.py:Hungry")
    (tmp_path / "r.yaml").write_text(text)
    command = [*DTRAIN, "run", str(tmp_path / "r.yaml"), "--set", "train.steps=400", "--runs", str(tmp_path / "runs")]
    inside = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    done = subprocess.run(inside, cwd="/", capture_output=True, text=True, check=False, env=os.environ | COLD)
    assert done.returncode == 1, done.stdout + done.stderr
    (run,) = all_runs(tmp_path / "runs")
    events = event_log.read(run.events)
    (failure,) = [event for event in events if isinstance(event, FailureOccurred)]
    assert (failure.kind, failure.rank) == (FailureKind.OUT_OF_MEMORY.value, 1)
    assert "out of memory: rank 1 killed by the kernel" in done.stdout
    assert "lower train.global_batch" in done.stdout
    assert len([event for event in events if isinstance(event, AttemptStarted)]) == 1
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert failure.step and saved[-1] >= failure.step - 10, "what was in memory is on disk"
