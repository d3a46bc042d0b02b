"""A run is the same under nohup, in the background of a shell, and under any umask."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from live import PROGRAMS, ROOT, started

TINY = str(PROGRAMS / "tiny.yaml")
SLOW = ("--set", "params.pause=0.05", "--set", "train.steps=40")
INHERITED = Path(__file__).with_name("inherited_signals.py")


@pytest.mark.parametrize(("command", "code"), [("trap '' HUP; ", 0), ("", 4)], ids=["nohup", "in-a-terminal"])
def test_a_closed_terminal_ends_a_run_unless_it_was_started_with_nohup(command: str, code: int, tmp_path: Path) -> None:
    with started(["run", TINY, *SLOW], tmp_path, shell=command) as live:
        live.wait_step(5)
        live.process.send_signal(signal.SIGHUP)
        live.finish(code)
    assert bool(live.events("stop_requested")) == bool(code)


@pytest.mark.parametrize("mask", ["000", "077"])
def test_under_any_umask_a_run_is_its_owners_alone(mask: str, tmp_path: Path) -> None:
    with started(["run", TINY, "--set", "train.steps=10"], tmp_path, shell=f"umask {mask}; ") as live:
        live.finish()
    assert stat.S_IMODE(live.run.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((live.run.path / "job.json").stat().st_mode) == 0o600
    live.assert_clean_audit(steps=10)


def test_tests_start_dtrain_alike_if_signals_are_ignored_where_pytest_is_started() -> None:
    """As from `nohup make test &`: children of pytest have the usual signals all the same."""
    inner = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{INHERITED}::test_signals"]
    command = ["sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh", *inner]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
