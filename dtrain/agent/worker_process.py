"""One worker of an agent: its process, its pipe and its last signs of life."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from dtrain.agent.worker_pipe import WorkerPipe
from dtrain.api.protocol import WorkerLiveness
from dtrain.api.strategy import RankInfo
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import GPU_DEVICES, ProcessHandle, opened, usage
from dtrain.record import log_retention, sample_ledger
from dtrain.record.events import LogShortened
from dtrain.record.log_times import LogTimes

IDLE_CPU_SHARE = 0.02
"""Share of one processor below which CPU time is no sign of life."""
INSPECTION_CPU_SECONDS = 0.05
"""CPU time that writing its stacks may cost a worker without being a sign of life."""


@dataclass
class WorkerProcess:
    """One running worker, with the time of its last sign of life."""

    rank_info: RankInfo
    pid: int
    """Process id, also of the process group that the worker leads."""
    pipe: WorkerPipe
    log: Path
    ledger: Path
    oom_kills: int
    looked: float = 0.0
    cpu_seconds: float = 0.0
    output: int = -1
    step: int | None = None
    active: float = 0.0
    advanced: float = 0.0
    stopped_since: float | None = None
    reported: bool = False
    """Whether it said why it fails."""
    keeps_growing: bool = False
    """Whether its log cannot be shortened."""
    inspected: bool = False
    """Whether it writes its stacks to its log just now."""
    excused_seconds: float = 0.0
    """CPU time since the last look that was spent on that."""
    spoke: bool = False
    """Whether it wrote other output meanwhile."""

    def __post_init__(self) -> None:
        self._on_device = False
        self._times = LogTimes(self.log)
        self.process = ProcessHandle(self.pid)

    def log_size(self) -> int:
        """Return the size of the worker's log in bytes."""
        return self.log.stat().st_size if self.log.exists() else 0

    def begin_inspection(self) -> int:
        """Note that the worker writes its stacks, which are no output of its own; returns the size of its log."""
        size = self.log_size()
        self.spoke |= size != self.output
        self.inspected = True
        self.excused_seconds += INSPECTION_CPU_SECONDS
        return size

    def end_inspection(self, size: int, *, other_output: bool) -> None:
        """Note that the log holds all stacks up to this size."""
        self.inspected, self.output = False, size
        self.spoke |= other_output

    def shorten_log(self, keep: int) -> LogShortened | None:
        """Bound the log to this number of bytes (0: all are kept); what there is to report of it."""
        if self.keeps_growing or not keep:
            return None
        try:
            removed = log_retention.shorten(self.log, keep)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.keeps_growing = True
            return LogShortened(rank=self.rank_info.rank, removed=0, problem=error.strerror or str(error))
        return LogShortened(rank=self.rank_info.rank, removed=removed) if removed else None

    def _uses_device(self) -> bool:
        self._on_device = self._on_device or bool(opened(self.pid, GPU_DEVICES))
        return self._on_device

    def look(self, now: float) -> WorkerLiveness:
        """Compare with the last look: a step, output or CPU time is a sign of life."""
        current = usage(self.pid)
        size = self.log_size()
        output = self.output if self.inspected else size
        with suppress(OSError):  # a full disk; the next look notes it
            self._times.note(size, time.time())
        newest = sample_ledger.LedgerFile(self.ledger).at(-1)
        step = newest.step + 1 if newest else None
        cpu = current.cpu_seconds if current else 0.0
        busy = cpu - self.cpu_seconds - self.excused_seconds > IDLE_CPU_SHARE * (now - self.looked)
        moments = [newest.time] if newest and step != self.step else []
        if output != self.output or self.spoke:
            moments.append(self.log.stat().st_mtime if self.log.exists() else time.time())
        if moments or not self.active:
            # When it happened, and not when it was noticed: a hang is found that much earlier.
            ago = time.time() - max(moments, default=0.0)
            self.advanced = min(now, max(self.looked, now - ago)) if self.active else now
        self.active = max(self.active, now if busy or not self.active else self.advanced)
        self.spoke, self.excused_seconds = False, 0.0
        stopped = bool(current and current.stopped)
        self.stopped_since = (self.stopped_since or now) if stopped else None
        self.looked, self.cpu_seconds, self.output, self.step = now, cpu, output, step
        return WorkerLiveness(
            step,
            idle_seconds=round(now - self.active, 2),
            stopped_seconds=round(now - self.stopped_since, 2) if self.stopped_since else 0.0,
            quiet_seconds=round(now - self.advanced, 2),
            on_device=self._uses_device(),
        )
