"""What is read of a process of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
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


NAMES = ["загрузчик-данных".encode()[:15], b"\xff\xfe\x80", b"a) b (c", b"(", b"two\nlines", b""]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_process_may_have_any_name(name: bytes) -> None:
    program = f"import time; open('/proc/self/comm', 'wb').write({name!r}); print('named', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        found = processes.usage(process.pid)
        assert found
        assert not found.stopped
        assert processes.alive(process.pid)
        assert processes.tree_cpu_seconds(process.pid) >= 0
        assert (
            processes.threads(process.pid)[0].endswith(("sleeping", "running"))
            or " in " in processes.threads(process.pid)[0]
        )
        assert processes.resident_megabytes(process.pid) > 1
        assert not processes.catches(process.pid, signal.SIGUSR2)
        assert processes.children(process.pid) == []
    finally:
        process.kill()
        process.communicate()
