"""What the local cluster says of a submitted run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dtrain.api.cluster import SubmissionState
from dtrain.api.plan import supervisor_command
from dtrain.clusters.local import Local, LocalOptions
from dtrain.record.folder import RunDir


def test_a_supervisor_that_does_not_hold_the_lock_yet_is_starting(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    cluster = Local(LocalOptions())
    slow = [sys.executable, "-c", "import time; time.sleep(60)", *supervisor_command(run)[-2:]]
    with subprocess.Popen(slow) as process:
        assert cluster.state(run, str(process.pid)).state is SubmissionState.RUNNING
        cluster.cancel(run, str(process.pid))
    assert cluster.state(run, str(process.pid)).state is SubmissionState.GONE


def test_a_process_that_has_the_number_of_a_former_supervisor_is_not_ended(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    cluster = Local(LocalOptions())
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        assert cluster.state(run, str(stranger.pid)).state is SubmissionState.GONE
        cluster.cancel(run, str(stranger.pid))
        assert stranger.poll() is None
        stranger.kill()
