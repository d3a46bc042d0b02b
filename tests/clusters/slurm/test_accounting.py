"""What SLURM's accounting says of a run is in its report, from a real slurmdbd on a database of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, dtrain, start
from processes import wait_until
from slurm_lab import SlurmLab, install_accounting

from dtrain.api.cluster import Usage
from dtrain.clusters.slurm.accounting import usage_in

TINY = str(PROGRAMS / "tiny.yaml")


def test_what_sacct_says_is_read_over_all_times_that_a_job_was_queued() -> None:
    lines = """\
7|NODE_FAIL|0:0|100|110||0
7.batch|CANCELLED|0:15|110|110|20000K|
7|OUT_OF_MEMORY|0:125|200|260||7200
7.batch|OUT_OF_MEMORY|0:125|260|260|1M|
7.0|COMPLETED|0:0|261|261|1.5G|
"""
    assert usage_in(lines) == Usage("OUT_OF_MEMORY, signal 125", 70.0, 3 << 29, 7200.0)
    assert usage_in("8|PENDING|0:0|100|Unknown||\n") == Usage("PENDING")
    assert usage_in("9|FAILED|3:0|100|101||0\n") == Usage("FAILED, exit code 3", 1.0)
    assert usage_in("") is None


def test_a_report_has_the_figures_of_the_accounting(tmp_path: Path) -> None:
    if problem := install_accounting():
        pytest.skip(problem)
    runs = tmp_path / "runs"
    with SlurmLab.start(tmp_path / "lab", nodes=1, accounting=True) as lab:
        environment: dict[str, Any] = {**lab.environment}
        with start(TINY, "--cluster", "slurm", "--set", "params.pause=0.05", runs=runs, **environment) as live:
            live.finish()
        submitted = live.run.submitted()
        assert submitted
        ended = ("sacct", "-X", "-n", "-P", "-j", submitted.reference, "-o", "State")
        wait_until(lambda: lab.run(*ended).stdout.strip() == "COMPLETED", 30, "the end is not recorded")
        done = dtrain("report", live.run.id, "--json", "--runs", str(runs), **environment)
        found = json.loads(done.stdout)["accounting"]
        assert found["ended"] == "COMPLETED"
        assert 0 <= found["queued_seconds"] < 60
        assert found["memory_bytes"] > 50 << 20
        assert found["energy_joules"] is None, "this machine measures none"
        shown = dtrain("report", live.run.id, "--runs", str(runs), **environment).stdout
        assert "slurm: ended COMPLETED, waited" in shown
        assert "most memory of a node" in shown
    without = dtrain("report", live.run.id, "--json", "--runs", str(runs), **environment)
    assert json.loads(without.stdout)["accounting"] is None, "no cluster answers any more"
