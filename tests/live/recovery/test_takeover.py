"""Two supervisors of one run folder on a file system without locks, where the first was held up and taken for dead."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, Live, finished, process_tree, silence, start, suspended
from no_locks import NO_LOCKS
from warm import COLD

from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.checkpoint.store import CheckpointInfo

RECIPE = str(PROGRAMS / "contract_torch.yaml")
SLOW = ("--workers", "2", "--set", "params.pause=0.1", "--set", "recovery.heartbeat_seconds=600")
STEPS = 20


@pytest.fixture
def no_locks(tmp_path: Path) -> dict[str, Any]:
    """What the environment needs so that the file of the run's lock cannot be locked."""
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "sitecustomize.py").write_text(NO_LOCKS)
    return COLD | {"PYTHONPATH": str(tmp_path / "shim")}


@pytest.mark.parametrize("wakes", ["while the other one trains", "when it has ended"])
def test_a_supervisor_that_wakes_without_locks_disturbs_nothing(
    wakes: str, no_locks: dict[str, Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with start(RECIPE, *SLOW, runs=runs, **no_locks) as live:
        live.wait_event("checkpoint_saved", step=5)
        live.wait_step(7)
        with suspended(process_tree(live.process.pid)):
            silence(live.run.claims)
            with start(
                str(live.run.path), "--set", "params.pause=0.1", command="resume", runs=runs, **no_locks
            ) as other:
                other.wait_event("checkpoint_saved", step=10)
                if wakes == "when it has ended":
                    other.finish()
                else:
                    for pid in process_tree(live.process.pid):
                        os.kill(pid, signal.SIGCONT)
                    other.finish()
        assert "another supervisor has taken over" in live.finish(code=3)
    undisturbed = finished(RECIPE, "--workers", "2", runs=tmp_path / "undisturbed")
    assert_whole(live, undisturbed)


def assert_whole(live: Live, undisturbed: Live) -> None:
    assert [event["exit_code"] for event in live.events("run_ended")] == [0]
    assert [event["attempt"] for event in live.events("attempt_started")] == [1, 2]
    (newest,) = LocalCheckpointStore(live.run.checkpoints).latest_valid()
    assert isinstance(newest, CheckpointInfo)
    assert newest.step == STEPS
    assert newest.weights == undisturbed.weights()
    assert not list(live.run.checkpoints.glob("damaged-*"))
    live.assert_clean_audit(STEPS)
