"""An agent whose pipe nobody closes ends when its supervisor has lost the run, and not because one look failed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from live import wait_for

from dtrain.agent.main import LEASE_SECONDS
from dtrain.job.job import Job, PluginChoice
from dtrain.record.folder import create
from dtrain.record.lock import claim_file


def test_a_look_that_fails_is_followed_by_others(tmp_path: Path) -> None:
    run = create(tmp_path, Job("a-run", script="x.py", folder=str(tmp_path), strategy=PluginChoice("script")))
    with run.lock() as lease:
        command = [sys.executable, "-P", "-m", "dtrain", "agent", str(run.path), "--node=node0"]
        agent = subprocess.Popen(
            [*command, f"--supervisor={lease.number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert agent.stdout
            assert b"agent_ready" in agent.stdout.readline()
            own, kept = claim_file(run.claims, lease.number), tmp_path / "kept"
            own.rename(kept)
            own.mkdir()  # reading it is an error of the file system
            time.sleep(LEASE_SECONDS + 1)
            assert agent.poll() is None
            own.rmdir()
            kept.rename(own)
            claim_file(run.claims, lease.number + 1).write_text("another\n")
            wait_for(lambda: agent.poll() is not None, "the end of the agent", LEASE_SECONDS + 10)
        finally:
            agent.kill()
            agent.communicate()
