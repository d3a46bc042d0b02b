"""The classes of failures, and how an exception or an exit code is classified."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Sequence
from enum import Enum

from dtrain.common.errors import Exit
from dtrain.common.lazy_dataclass import dataclass


class FailureKind(str, Enum):
    """The class of a failure."""

    BUG = "bug"
    TRANSIENT = "chance"
    """An exception that can be transient (a file server, a connection to a service): one confirming retry."""
    DEVICE = "device"
    """An accelerator, its memory, its links or its driver: another attempt may get a sound one."""
    OUT_OF_MEMORY = "out of memory"
    CRASH = "crash"
    """A signal of the program's own making: SIGSEGV, SIGABRT, SIGBUS …"""
    KILLED = "killed"
    """A signal from outside."""
    SETUP = "set-up"
    """An error that dtrain found before training: something is missing or cannot work here."""
    HANG = "hang"
    NODE_LOST = "node lost"
    PREEMPTED = "preempted"
    CASCADE = "cascade"
    """The end of a connection to another worker: never the cause if an initiator is known."""


@dataclass(frozen=True)
class Failure:
    """The cause of a failed attempt, as far as it can be known."""

    kind: FailureKind
    message: str
    rank: int | None = None
    node: str = ""
    step: int | None = None
    """Steps the failing worker had done; None if it has no steps (a script)."""
    traceback: str = ""
    where: str = ""
    """The innermost line of the user's code, `file.py:12 in loss`."""
    code: int = 1
    """Exit code, or minus the signal."""
    exit_code: int = int(Exit.USER_CODE)
    """Of the run, if this failure ends it."""
    saved_step: int = 0
    """The step of the newest committed checkpoint when it happened."""
    time: float = 0.0
    """Seconds since 1970, when it was noticed."""

    @property
    def fingerprint(self) -> str:
        """Key under which two failures count as the same; empty = never equal."""
        if self.kind in (FailureKind.NODE_LOST, FailureKind.PREEMPTED, FailureKind.CASCADE):
            return ""
        if self.kind in (FailureKind.BUG, FailureKind.TRANSIENT):
            return f"{self.kind.value}|{self.where}|{re.sub(r'[0-9]+', '#', self.message)}"
        return "" if self.step is None else f"{self.kind.value}|{self.code}|{self.rank}|{self.step}"


FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
NO_MEMORY = os.strerror(errno.ENOMEM)
TRANSIENT = {"ConnectionError", "ConnectionResetError", "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError",
          "TimeoutError", "OSError", "InterruptedError"}  # fmt: skip


def exception_kind(type_names: Sequence[str], message: str) -> FailureKind:
    """Pure. The class of one of Python's own exceptions from the names of its type and bases, nearest first, and its text;
    those of frameworks are classified by the strategy."""
    if "MemoryError" in type_names or NO_MEMORY in message:
        return FailureKind.OUT_OF_MEMORY
    return FailureKind.TRANSIENT if type_names and type_names[0] in TRANSIENT else FailureKind.BUG


def exit_kind(code: int, *, out_of_memory: bool) -> tuple[FailureKind, str]:
    """Pure. Class and words for a worker that ended without a report of its own."""
    if code >= 0:
        return FailureKind.BUG, f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL and out_of_memory:
        return FailureKind.OUT_OF_MEMORY, "killed by the kernel: the host is out of memory (oom_kill)"
    if -code in FAULTS:
        return FailureKind.CRASH, f"crashed with {name}"
    return FailureKind.KILLED, f"killed by {name}"
