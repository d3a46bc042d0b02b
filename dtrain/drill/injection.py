"""Where `dtrain drill` makes real faults happen: the only place of dtrain that does, in workers and in the supervisor.

A drill's runs have the schedule of their faults in the environment (`DTRAIN_HOOKS`), where no recipe can put it. Which fault strikes
follows from the number of the attempt and the step alone, so a schedule does the same again.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtrain.common.hooks import Batch, Hooks
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import children, signal_process
from dtrain.drill import network_faults
from dtrain.drill.fault import Fault, Schedule, Side, decode
from dtrain.record.folder import RunDir

SLOW_SECONDS = 0.2
STALL_SECONDS = 5.0
OTHERS_LATE_SECONDS = 1.0
"""In a fault inside a collective, the other ranks come to the step so much later, and the rank that waits for them is struck meanwhile."""
TWO_CHECKPOINTS_SECONDS = 20.0
TEXT = "injected by dtrain drill"


@dataclass(frozen=True)
class _Plan:
    """The faults of this process."""

    run: RunDir
    faults: Schedule
    rank: int | None
    """None: the supervisor."""
    attempt: int
    """Attempt of a worker; a supervisor passes it with each phase."""
    first_step: int
    notice: Callable[[str], None]
    """Tell the supervisor of a node that is about to be taken away."""

    @property
    def fault(self) -> Fault | None:
        """The one of this attempt."""
        return self.faults[self.attempt - 1] if 1 <= self.attempt <= len(self.faults) else None


_struck: set[int] = set()
"""Attempts whose fault has struck in this process."""


def no_notice(node: str) -> None:
    """Ignore the notice: a worker has no supervisor's inbox."""


def hooks(
    schedule: str, *, run: RunDir, rank: int | None = None, attempt: int = 0, first_step: int = 0, notice: Callable[[str], None] = no_notice
) -> Hooks:  # fmt: skip
    """The faults of a schedule, for `dtrain.common.hooks.install`."""
    _struck.clear()
    return Injection(_Plan(run, decode(schedule), rank, attempt, first_step, notice))


class Injection(Hooks):
    """Has the faults of a plan strike where they are due."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan

    def reach(self, phase: str, step: int, attempt: int | None) -> None:
        """Have the fault strike that is planned for this phase."""
        plan = self._plan if attempt is None else replace(self._plan, attempt=attempt)
        fault = plan.fault
        if fault is None or fault.seconds is not None or (fault.type.side is Side.SUPERVISOR) != (plan.rank is None):
            return
        if fault.name == "slow":
            _slow(plan, fault, phase, step)
        elif fault.type.side is not Side.DATA and plan.attempt not in _struck and _is_due(plan, fault, phase, step):
            _strike(plan, fault, step)

    def wrap_fetch(self, fetch: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """Add the fault that is planned for fetching."""
        plan = self._plan
        fault = plan.fault
        if fault is None or fault.type.side is not Side.DATA or fault.rank != plan.rank:
            return fetch

        def fetch_with_fault(step: int) -> Batch:
            batch = fetch(step)
            if step != max(fault.step, plan.first_step):
                return batch
            _note(plan, fault, step)
            if fault.name == "data-raise":
                raise ValueError(f"a sample of step {step} cannot be read ({TEXT})")
            if fault.name == "data-hang":
                _sleep_for_ever()
            spoiled: tuple[Batch, int] = _spoiled(batch)
            if not spoiled[1]:
                _note(plan, fault, step, problem="its batches hold no floating-point numbers")
            return spoiled[0]

        return fetch_with_fault

    def before_script(self) -> None:
        """Fork a child that strikes this process, or those above it, after a time."""
        plan = self._plan
        fault = plan.fault
        if fault is None or fault.seconds is None or fault.rank != plan.rank:
            return
        worker, zygote = os.getpid(), os.getppid()
        if os.fork():
            return
        with suppress(BaseException):
            time.sleep(fault.seconds)
            _note(plan, fault, 0)
            _strike_process(fault, worker, zygote)
        os._exit(0)


def _is_due(plan: _Plan, fault: Fault, phase: str, step: int) -> bool:
    """Whether a fault strikes now; in a fault inside a collective, all ranks have a part."""
    if fault.phase == "collective":
        return phase == "step" and step == max(fault.step, plan.first_step)
    if phase == "step" and fault.phase == "first-step":
        return step == plan.first_step and fault.rank == plan.rank
    if phase != fault.phase or (plan.rank is not None and fault.rank != plan.rank):
        return False
    return step >= fault.step or phase in ("import", "rendezvous", "build")


def _strike(plan: _Plan, fault: Fault, step: int) -> None:
    _struck.add(plan.attempt)
    if fault.phase == "collective":
        _strike_in_collective(plan, fault, step)
        return
    if fault.phase == "writing" and fault.type.side is Side.PROCESS:
        threading.Thread(target=_strike_while_writing, args=(plan, fault, step), daemon=True).start()
        return
    if fault.type.side is Side.CHECKPOINT and fault.phase == "step":
        _damage_newest(plan, fault)
    _note(plan, fault, step)
    if fault.type.side is Side.PROCESS:
        _strike_process(fault, os.getpid(), os.getppid())
    else:
        _ACTS[fault.name](plan, step)


def _strike_process(fault: Fault, worker: int, zygote: int) -> None:
    """Strike this process, those above it, or (from a child) the parent."""
    itself = worker == os.getpid()
    if fault.name == "exit" and itself:
        os._exit(3)
    elif fault.name == "segv" and itself:
        ctypes.string_at(0)
    elif fault.name in ("agent", "node"):
        template = _parent(zygote)
        rest = [template, zygote, *children(zygote)] if fault.name == "node" else []
        os.kill(_parent(template), signal.SIGKILL)
        for pid in rest:
            signal_process(pid, signal.SIGKILL)
    else:
        number = {"stop": signal.SIGSTOP, "segv": signal.SIGSEGV}.get(fault.name, signal.SIGKILL)
        os.kill(zygote if fault.name == "zygote" else worker, number)
    if itself:
        time.sleep(STALL_SECONDS)  # what was killed takes this process with it


def _strike_in_collective(plan: _Plan, fault: Fault, step: int) -> None:
    if plan.rank != fault.rank:
        time.sleep(OTHERS_LATE_SECONDS)
        return

    def strike() -> None:
        time.sleep(OTHERS_LATE_SECONDS / 2)
        _note(plan, fault, step)
        if fault.type.side is Side.PROCESS:
            _strike_process(fault, os.getpid(), os.getppid())
        else:
            _ACTS[fault.name](plan, step)

    threading.Thread(target=strike, daemon=True).start()


def _strike_while_writing(plan: _Plan, fault: Fault, step: int) -> None:
    """As soon as there is a file of this checkpoint."""
    folder = plan.run.checkpoints
    deadline = time.monotonic() + STALL_SECONDS
    while not any(folder.glob(f".staging-{plan.attempt:04d}-{step:08d}/*")) and time.monotonic() < deadline:
        time.sleep(0.0002)
    _note(plan, fault, step)
    _strike_process(fault, os.getpid(), os.getppid())


def _slow(plan: _Plan, fault: Fault, phase: str, step: int) -> None:
    if phase != "step" or fault.rank != plan.rank or step < fault.step:
        return
    if plan.attempt not in _struck:
        _struck.add(plan.attempt)
        _note(plan, fault, step)
    time.sleep(SLOW_SECONDS)


def _damage_newest(plan: _Plan, fault: Fault) -> None:
    """Damage the newest committed checkpoint, as soon as there is one before it."""
    folder, deadline = plan.run.checkpoints, time.monotonic() + TWO_CHECKPOINTS_SECONDS
    while len(list(folder.glob("step-*/manifest.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    newest = max(folder.glob("step-*/manifest.json")).parent
    if fault.name == "truncate-manifest":
        manifest = newest / "manifest.json"
        os.truncate(manifest, manifest.stat().st_size // 2)
        return
    file = max((path for path in newest.iterdir() if path.suffix != ".json"), key=lambda path: path.stat().st_size)
    with open(file, "r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte[0] ^ 1]))


def _note(plan: _Plan, fault: Fault, step: int, problem: str = "") -> None:
    """Write down when a fault strikes: for the drill that asked for it, and in the rank's log."""
    facts = {"fault": fault.text, "attempt": plan.attempt, "step": step, "time": time.time()}
    line = json.dumps(facts | ({"problem": problem} if problem else {})) + "\n"
    with open(log_of(plan.run), "a") as file:
        file.write(line)
    print(f"--- dtrain drill: {fault.type.text} (step {step}) ---", file=sys.stderr, flush=True)


def log_of(run: RunDir) -> Path:
    """Return the file with what was injected when, one JSON line each."""
    return run.logs / "drill.log"


def _spoiled(value: Any) -> tuple[Any, int]:
    """A batch with NaN in place of all its floating-point numbers, and how many arrays of them there were."""
    if isinstance(value, Mapping):
        made = {name: _spoiled(one) for name, one in value.items()}
        return {name: one for name, (one, _) in made.items()}, sum(count for _, count in made.values())
    if isinstance(value, list | tuple):
        parts = [_spoiled(one) for one in value]
        whole = [one for one, _ in parts]
        return (tuple(whole) if isinstance(value, tuple) else whole), sum(count for _, count in parts)
    if "float" in str(getattr(value, "dtype", "")):
        return value * float("nan"), 1
    return value, 0


def _sleep_for_ever() -> None:
    while True:
        time.sleep(3600)


def _spin(plan: _Plan, step: int) -> None:
    while True:
        pass


def _raise(error: BaseException) -> Callable[[_Plan, int], None]:
    def act(plan: _Plan, step: int) -> None:
        raise error

    return act


def _signal_itself(number: int) -> Callable[[_Plan, int], None]:
    return lambda plan, step: os.kill(os.getpid(), number)


def _announce_drain(plan: _Plan, step: int) -> None:
    from dtrain.record import event_log
    from dtrain.record.events import AttemptStarted

    started = [
        event for event in event_log.Reader(plan.run.events, AttemptStarted).new() if isinstance(event, AttemptStarted)
    ]
    plan.notice(started[-1].nodes[-1])


_ACTS: dict[str, Callable[[_Plan, int], None]] = {
    "raise": _raise(RuntimeError(TEXT)),
    "raise-once": _raise(ConnectionResetError(TEXT)),
    "oom": _raise(MemoryError(TEXT)),
    "hang": lambda plan, step: _sleep_for_ever(),
    "spin": _spin,
    "network-cut": lambda plan, step: network_faults.cut(),
    "network-delay": lambda plan, step: network_faults.slow_down(),
    "supervisor": _signal_itself(signal.SIGKILL),
    "preempt": _signal_itself(signal.SIGTERM),
    "time-limit": _signal_itself(signal.SIGUSR1),
    "drain": _announce_drain,
    "corrupt-checkpoint": _signal_itself(signal.SIGKILL),
    "truncate-manifest": _signal_itself(signal.SIGKILL),
    "disk-full": _raise(OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({TEXT})")),
    "shm-full": _raise(OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({TEXT})")),
    "storage-stall": lambda plan, step: time.sleep(STALL_SECONDS),
}


def _parent(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape")
    return int(text[text.rindex(")") + 2 :].split()[1])
