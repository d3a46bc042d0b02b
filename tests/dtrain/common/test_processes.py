"""What is read of a process of this machine."""

from __future__ import annotations

import os
import subprocess

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
