"""One worker of an agent: its process, its pipe and its last signs of life."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from dtrain.api.protocol import WorkerLiveness
from dtrain.api.reports import LogShortened
from dtrain.api.strategy import RankInfo
from dtrain.common.processes import usage
from dtrain.run import log_retention, sample_ledger

IDLE_CPU_SHARE = 0.02
"""Of one processor: less is no sign of life."""


@dataclass
class WorkerProcess:
    """One running worker and when it last showed a sign of life."""

    rank_info: RankInfo
    pid: int
    """It leads a process group of the same number."""
    pipe: Connection
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
            return LogShortened(0, error.strerror or str(error))
        return LogShortened(removed) if removed else None

    def look(self, now: float) -> WorkerLiveness:
        """Compare with the last look: a step, output or CPU time is a sign of life."""
        current = usage(self.pid)
        output = self.log.stat().st_size if self.log.exists() else 0
        step = sample_ledger.last_step(self.ledger)
        cpu = current.cpu_seconds if current else 0.0
        busy = cpu - self.cpu_seconds > IDLE_CPU_SHARE * (now - self.looked)
        if output != self.output or step != self.step or not self.active:
            self.advanced = now
        if busy or self.advanced == now:
            self.active = now
        stopped = bool(current and current.stopped)
        self.stopped_since = (self.stopped_since or now) if stopped else None
        self.looked, self.cpu_seconds, self.output, self.step = now, cpu, output, step
        return WorkerLiveness(
            step,
            idle_seconds=round(now - self.active, 2),
            stopped_seconds=round(now - self.stopped_since, 2) if self.stopped_since else 0.0,
            quiet_seconds=round(now - self.advanced, 2),
        )
