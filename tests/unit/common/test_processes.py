"""What is read of a process of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from live import wait_for

from dtrain.common import processes
from dtrain.common.processes import command_line

SLEEP = ["/bin/sleep", "60"]


def test_the_arguments_of_a_process_that_has_just_been_started() -> None:
    """In the middle of execve(2), /proc shows none for a moment; here it was seen in every second process on a loaded machine."""
    for _ in range(50):
        with subprocess.Popen(SLEEP) as process:
            try:
                assert command_line(process.pid) == SLEEP
            finally:
                process.kill()


def test_a_process_that_has_ended_has_no_arguments() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert command_line(process.pid) == []
    assert command_line(process.pid) == []


def test_the_time_of_a_tree_is_that_of_all_below_it() -> None:
    """A shell whose child computes: the shell itself uses next to nothing."""
    program = f"{sys.executable} -c 'while True: pass' & read nothing"
    with subprocess.Popen(["bash", "-c", program], stdin=subprocess.PIPE, start_new_session=True) as shell:
        try:
            wait_for(lambda: processes.tree_cpu_seconds(shell.pid) > 0.5, "half a second of its child")
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    assert processes.tree_cpu_seconds(shell.pid) == 0.0
