"""What a failure is and what it is answered with: values in, values out, nothing is done here."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from dtrain.errors import Exit
from dtrain.job import Recovery


class Kind(str, Enum):
    """The class of a failure."""

    BUG = "bug"
    CHANCE = "chance"
    """An exception that can be bad luck (a file server, a connection to a service): one confirming retry."""
    OUT_OF_MEMORY = "out of memory"
    CRASH = "crash"
    """A signal of the program's own making: SIGSEGV, SIGABRT, SIGBUS …"""
    KILLED = "killed"
    """A signal from outside."""
    SETUP = "set-up"
    """An error of ours that the worker found: something is missing or cannot work here."""
    HANG = "hang"
    NODE_LOST = "node lost"
    PREEMPTED = "preempted"
    CASCADE = "cascade"
    """The end of a connection to another worker: never the cause where an initiator is known."""


@dataclass(frozen=True)
class Failure:
    """The cause of a failed attempt, as far as it can be known."""

    kind: Kind
    message: str
    rank: int | None = None
    node: str = ""
    step: int | None = None
    """Steps the failing worker had done; None where it has no steps (a script)."""
    traceback: str = ""
    where: str = ""
    """The innermost line of the user's code, `file.py:12 in loss`."""
    code: int = 1
    """Exit code, or minus the signal."""
    exit_code: int = int(Exit.USER_CODE)
    """Of the run, where an error of ours says it."""
    saved_step: int = 0
    """The step of the newest committed checkpoint when it happened."""
    time: float = 0.0
    """Seconds since 1970, when it was noticed."""

    @property
    def fingerprint(self) -> str:
        """Equal for failures that look like the same one; '' where nothing tells two of them apart."""
        if self.kind in (Kind.NODE_LOST, Kind.PREEMPTED, Kind.CASCADE):
            return ""
        if self.kind in (Kind.BUG, Kind.CHANCE):
            return f"{self.kind.value}|{self.where}|{re.sub(r'[0-9]+', '#', self.message)}"
        return "" if self.step is None else f"{self.kind.value}|{self.code}|{self.rank}|{self.step}"


@dataclass(frozen=True)
class Decision:
    """What to do now."""

    retry: bool
    reason: str
    exit_code: Exit = Exit.DONE
    """Of the run, where it is not tried again."""
    delay_seconds: float = 0.0


FREE = (Kind.NODE_LOST, Kind.PREEMPTED)
LOSSES_PER_RESTART = 4


def decide(failures: Sequence[Failure], settings: Recovery) -> Decision:
    """Pure. The answer to the last of these failures, in the light of all before it."""
    last = failures[-1]
    stretch = [failure for failure in failures if failure.saved_step == last.saved_step]
    equal = [failure for failure in stretch[:-1] if last.fingerprint and failure.fingerprint == last.fingerprint]
    if last.kind is Kind.SETUP:
        return Decision(retry=False, reason="it would be the same again", exit_code=Exit(last.exit_code))
    if last.kind is Kind.BUG:
        return Decision(retry=False, reason="an error in the user's code is not retried", exit_code=Exit.USER_CODE)
    if last.kind is Kind.OUT_OF_MEMORY:
        hint = "lower train.global_batch, raise train.shards or use more workers"
        return Decision(retry=False, reason=f"out of memory would strike again: {hint}", exit_code=Exit.USER_CODE)
    if equal:
        code = Exit(last.exit_code) if last.kind is Kind.CHANCE else Exit.GAVE_UP
        return Decision(
            retry=False, reason="the same failure struck twice with no new checkpoint in between", exit_code=code
        )
    if last.kind in FREE:
        return _after_loss(stretch, settings)
    spent = sum(failure.kind not in FREE for failure in stretch)
    if spent > settings.restarts:
        return Decision(
            retry=False,
            reason=f"{spent} failures without a new checkpoint (recovery.restarts: {settings.restarts})",
            exit_code=Exit.GAVE_UP,
        )
    delay = 0.0 if spent == 1 else settings.backoff_seconds * 2.0 ** (spent - 2)
    return Decision(
        retry=True, reason=f"restart {spent} of {settings.restarts} since the last progress", delay_seconds=delay
    )


def _after_loss(stretch: Sequence[Failure], settings: Recovery) -> Decision:
    losses = sum(failure.kind in FREE for failure in stretch)
    if losses > LOSSES_PER_RESTART * (settings.restarts + 1):
        return Decision(
            retry=False, reason=f"{losses} nodes were lost without a new checkpoint in between", exit_code=Exit.GAVE_UP
        )
    delay = 0.0 if losses == 1 else settings.backoff_seconds * min(losses - 1, 30)
    return Decision(retry=True, reason="a lost node does not count as a failure of the run", delay_seconds=delay)


FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
MEMORY = re.compile(r"^(MemoryError|OutOfMemoryError|ResourceExhaustedError)$")
CONNECTION = re.compile(
    r"connection (reset|closed|refused)|reset by peer|closed by peer|broken pipe|socket closed|connectfull"
    r"|horovodinternalerror|gloo|nccl|remote process exited|heartbeat|coordination service|unavailable|peer .*(left|failed)",
    re.IGNORECASE,
)
PEER_ERRORS = {
    "DistBackendError", "DistNetworkError", "DistStoreError", "HorovodInternalError", "UnavailableError",
    "UnknownError", "DeadlineExceededError", "AbortedError", "CancelledError", "InternalError",
}  # fmt: skip
CHANCE = {"ConnectionError", "ConnectionResetError", "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError",
          "TimeoutError", "OSError", "InterruptedError"}  # fmt: skip


def exception_kind(type_names: Sequence[str], message: str) -> Kind:
    """Pure. The class of an exception from the names of its type and bases, nearest first, and its text."""
    name = type_names[0] if type_names else ""
    if any(MEMORY.match(base) for base in type_names) or "out of memory" in message.lower():
        return Kind.OUT_OF_MEMORY
    if (name in PEER_ERRORS or name == "RuntimeError") and CONNECTION.search(f"{name} {message}"):
        return Kind.CASCADE
    return Kind.CHANCE if name in CHANCE else Kind.BUG


def exit_kind(code: int, *, out_of_memory: bool) -> tuple[Kind, str]:
    """Pure. Class and words for a worker that ended without a report of its own."""
    if code >= 0:
        return Kind.BUG, f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL and out_of_memory:
        return Kind.OUT_OF_MEMORY, "killed by the kernel: the host is out of memory (oom_kill)"
    if -code in FAULTS:
        return Kind.CRASH, f"crashed with {name}"
    return Kind.KILLED, f"killed by {name}"


RANKING = (
    # What comes from outside explains whatever the others say; an abort can be the answer to a broken connection.
    Kind.NODE_LOST, Kind.KILLED, Kind.OUT_OF_MEMORY, Kind.SETUP, Kind.BUG, Kind.CRASH, Kind.HANG, Kind.CHANCE, Kind.PREEMPTED, Kind.CASCADE,
)  # fmt: skip


def cause(candidates: Sequence[Failure]) -> Failure:
    """Pure. The initiator among the failures of one attempt, given in the order they were noticed."""
    return min(candidates, key=lambda failure: RANKING.index(failure.kind))


def conclusive(failure: Failure) -> bool:
    """Pure. Whether this failure is a cause by itself, so that there is no need to wait for other workers' reports."""
    return failure.kind in (Kind.KILLED, Kind.HANG, Kind.OUT_OF_MEMORY, Kind.NODE_LOST) or bool(
        failure.kind is Kind.BUG and failure.traceback
    )
