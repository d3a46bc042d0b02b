"""The point from which an attempt begins."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.api.memory_protocol import MemoryCheckpoint, MemoryPeer
from dtrain.api.protocol import StartWorkers
from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.checkpoint.store import CheckpointInfo
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.job import Job


@dataclass(frozen=True)
class StartPoint:
    """The newest checkpoint on disk and, if there is a newer one, that in memory, which is taken then."""

    saved: CheckpointInfo | None = None
    memory: MemoryCheckpoint | None = None
    rolled_back: tuple[int, ...] = ()
    """Steps to go on without."""

    @property
    def step(self) -> int:
        """Number of steps done."""
        found = self.memory or self.saved
        return found.step if found else 0

    @property
    def saved_step(self) -> int:
        """Steps that are done in the checkpoint on disk."""
        return self.saved.step if self.saved else 0

    @property
    def checkpoint(self) -> str | None:
        """Name of the checkpoint on disk that the attempt begins from."""
        return self.saved.name if self.saved and not self.memory else None

    def command(
        self,
        attempt: int,
        ranks: Sequence[RankInfo],
        rendezvous: RendezvousInfo,
        job: Job,
        partner: MemoryPeer | None,
    ) -> StartWorkers:
        """Return the command for a node with these ranks."""
        wait = job.recovery.device_wait_seconds if job.resources.device == "gpu" else 0.0
        return StartWorkers(
            attempt, tuple(ranks), rendezvous, self.checkpoint, self.step, job.logs.keep_bytes, self.memory, partner, self.rolled_back, wait
        )  # fmt: skip
