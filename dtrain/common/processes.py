"""Process groups and what /proc tells of them; Linux only."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.common.lazy_dataclass import dataclass

if TYPE_CHECKING:
    import subprocess

_detached: list[subprocess.Popen[bytes]] = []
"""Processes that this one started and does not wait for, kept so that their exit statuses are collected."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PROC = Path("/proc")
GPU_DEVICES = ("/dev/nvidia-uvm", "/dev/kfd")
"""Device files that CUDA and ROCm open when they are initialised; a process that is forked afterwards cannot use
them."""
SUPERVISE = ("-m", "dtrain", "supervise")
"""What the command of a supervisor that a cluster starts has before the run folder."""
TEMPLATE = "import sys; sys.path[:1] == [''] and sys.path.pop(0); from dtrain.agent.zygote import main; main()"
"""The program of a template and of a resident. Started without `-P`, which workers would inherit and plain programs do not have."""
STACKS_SIGNAL = signal.SIGQUIT
"""Has a worker or a zygote write the stacks of its threads."""
STATES = {"R": "running", "S": "sleeping", "D": "waiting for a device", "T": "stopped", "t": "traced", "Z": "ended"}
"""States of a thread, as /proc/PID/stat names them."""
TICKS = os.sysconf("SC_CLK_TCK")


@cache
def boot_id() -> str:
    """Tells this boot of this machine's kernel from every other one; '' if the system does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def send_output_to(log: Path) -> None:
    """Whatever this process and its libraries print goes to this file from now on, and stdin is empty: whoever wants to keep
    what was there before has to duplicate it first."""
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(output)


def kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal the group that `pid` leads, and `pid` itself in case it leads none yet; a process that is gone is fine."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    signal_process(pid, number)


def name_of(pid: int) -> str:
    """Return the name of a process as ps(1) shows it; '' if it is gone."""
    with suppress(OSError):
        return _said(Path(f"/proc/{pid}/comm")).strip()
    return ""


def opened(pid: int | str, devices: Collection[str]) -> str:
    """Return the first of these device files that a process has open; '' if it has none, or is gone."""
    with suppress(OSError):
        for link in (PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):  # it was closed just now
                target = str(link.readlink())
                if target in devices:
                    return target
    return ""


def children(pid: int) -> list[int]:
    """The processes that a process has started and not waited for; none if it is gone."""
    found = list[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, _said(task).split())
    return found


def alive(pid: int) -> bool:
    """Whether this process exists and is no zombie."""
    state = _stat(pid)
    return state is not None and state.state not in "ZX"


def command_line(pid: int) -> list[str]:
    """The arguments that a process of this machine was started with; none if it is gone or may not be read.

    In the middle of execve(2) a process has none for a moment, so one that is alive is asked again for up to 0.5 s.
    """
    deadline = time.monotonic() + 0.5
    while True:
        try:
            arguments = _said(Path(f"/proc/{pid}/cmdline")).split("\0")[:-1]
        except OSError:
            return []
        if arguments or not alive(pid) or time.monotonic() > deadline:
            return arguments
        time.sleep(0.005)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends (prctl(2), PR_SET_PDEATHSIG); ends at once if it already has."""
    import ctypes  # the launcher need not pay for it

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with_parent`."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)


def signal_process(pid: int, number: int) -> None:
    """Signal one process; one that is gone, or was just waited for, is fine."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def adopt_orphans() -> None:
    """Be the parent of every process below whose own parent ends (prctl(2), PR_SET_CHILD_SUBREAPER), whatever its session is."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def outlives_attempts(pid: int) -> bool:
    """Whether this process goes on when the attempt ends in which it was started: the supervisor of a run that was submitted on this machine,
    or a process that keeps what such a run has imported."""
    with suppress(ProcessLookupError):
        arguments = command_line(pid)
        is_supervisor = os.getsid(pid) == pid and tuple(arguments[-4:-1]) == SUPERVISE
        return is_supervisor or (arguments[2:3] == [TEMPLATE] and arguments[5:6] != [""])
    return False


class ProcessHandle:
    """A process by its descriptor (pidfd_open(2)): once it was waited for, nothing is signalled that has its number then."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except OSError:  # it was waited for already
            self._fd = None

    def send(self, number: int) -> None:
        """Signal the process; one that is gone is fine."""
        if self._fd is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._fd, number)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the process has ended within this time; it need not be a child."""
        return self._fd is None or bool(select.select([self._fd], [], [], seconds)[0])

    def send_to_group(self, number: int = signal.SIGKILL) -> None:
        """Signal the group that the process leads, and the process itself in case it leads none yet."""
        if self._fd is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._fd, 0)  # it has not been waited for: its number is its own
                kill_group(self.pid, number)

    def close(self) -> None:
        """Idempotent. Signal nothing any more."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None


def set_name(name: str) -> None:
    """The name that `top` and `ps -o comm` show, 15 bytes."""
    with suppress(OSError):
        Path("/proc/self/comm").write_bytes(name.encode()[:15])


@dataclass(frozen=True)
class Usage:
    """A process at one moment."""

    cpu_seconds: float
    """CPU time of the process and its children, living and waited for."""
    stopped: bool
    """Stopped by a signal or a debugger."""


def usage(pid: int) -> Usage | None:
    """Read from /proc what a process and its living children use; None if it is gone."""
    own = _stat(pid)
    if own is None:
        return None
    below = filter(None, map(_stat, children(pid)))
    return Usage(own.cpu_seconds + sum(child.cpu_seconds for child in below), own.state in "Tt")


def tree_cpu_seconds(pid: int) -> float:
    """Processor time of a process and of all below it, those that have ended and were waited for included; 0 if it is gone."""
    own = _stat(pid)
    if own is None:
        return 0.0
    return own.cpu_seconds + sum(map(tree_cpu_seconds, children(pid)))


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; one without would be killed by it."""
    with suppress(OSError, ValueError):
        for line in _said(Path(f"/proc/{pid}/status")).splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def threads(pid: int) -> list[str]:
    """Read the threads of a process and of all below it: name, state, and the kernel function that they wait in."""
    found = []
    with suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name)):
            with suppress(OSError):
                stat = _said(task / "stat")
                state = STATES.get(stat[stat.rindex(")") + 2], "unknown")
                waits = _said(task / "wchan").strip("0\n")
                name = (task / "comm").read_text(errors="replace").strip()
                found.append(f"{name}: {state}" + (f" in {waits}" if waits else ""))
    for child in children(pid):
        found += [f"  {line}" for line in threads(child)]
    return found


def resident_megabytes(pid: int) -> float:
    """Memory that a process takes (VmRSS); 0 if it is gone."""
    with suppress(OSError):
        for line in _said(Path(f"/proc/{pid}/status")).splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1e3
    return 0.0


def peak_resident_bytes() -> int:
    """The most memory that this process has taken since it was forked (VmHWM); 0 if the system does not say."""
    with suppress(OSError):
        for line in _said(Path("/proc/self/status")).splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _said(path: Path) -> str:
    """What the kernel says in a file of /proc. The name of a process in it is any bytes: it is cut after 15, in the middle of a letter,
    too. Raises `OSError`."""
    return path.read_text(errors="surrogateescape")


@dataclass(frozen=True)
class _Stat:
    state: str
    cpu_seconds: float


def _stat(pid: int) -> _Stat | None:
    try:
        text = _said(Path(f"/proc/{pid}/stat"))
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(fields[0], sum(map(int, fields[11:15])) / TICKS)


def discard_stdout() -> None:
    """The reader of our output has gone: keep Python from complaining about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def start_detached(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which the terminal's end does not touch, with its output behind what a log has. Raises
    `OSError`."""
    import subprocess  # not all who look at processes start some

    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env=environment,
        )
    _detached[:] = [one for one in _detached if one.poll() is None] + [process]
    return process
