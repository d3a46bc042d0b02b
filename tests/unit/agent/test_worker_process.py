"""When a worker last showed a sign of life."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dtrain.agent.worker_pipe import WorkerPipe
from dtrain.agent.worker_process import WorkerProcess
from dtrain.api.strategy import RankInfo
from dtrain.common import processes
from dtrain.record import sample_ledger
from dtrain.record.sample_ledger import Ledger


def test_a_step_counts_from_when_it_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from the look that notices it."""
    ours, theirs = socket.socketpair()
    ledger = tmp_path / "ledger"
    worker = WorkerProcess(RankInfo(0, 1, 0, 1, 0, 1, 1), os.getpid(), WorkerPipe(ours), tmp_path / "log", ledger, 0)
    now, wall = time.monotonic(), time.time()
    worker.look(now - 3.0)
    with monkeypatch.context() as two_seconds_ago:
        two_seconds_ago.setattr(sample_ledger, "time", SimpleNamespace(time=lambda: wall - 2.0))
        Ledger(ledger).add(0, 0, np.arange(4))
    sign = worker.look(now)
    assert sign.step == 1
    assert 2.0 <= sign.quiet_seconds <= 3.0
    worker.pipe.close()
    theirs.close()


def test_a_worker_uses_a_gpu_once_it_has_opened_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    worker = WorkerProcess(
        RankInfo(0, 1, 0, 1, 0, 1, 1), os.getpid(), WorkerPipe(ours), tmp_path / "log", tmp_path / "ledger", 0
    )
    assert not worker.look(time.monotonic()).on_device
    monkeypatch.setattr(processes, "PROC", tmp_path)
    descriptors = tmp_path / str(os.getpid()) / "fd"
    descriptors.mkdir(parents=True)
    (descriptors / "3").symlink_to("/dev/nvidia-uvm")
    assert worker.look(time.monotonic()).on_device
    worker.pipe.close()
    theirs.close()
