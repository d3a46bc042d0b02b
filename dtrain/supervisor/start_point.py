"""Where an attempt begins."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.api.protocol import MemoryCheckpoint
from dtrain.checkpoint.store import CheckpointInfo


@dataclass(frozen=True)
class StartPoint:
    """The newest checkpoint on disk and, if there is a newer one, that in memory, which is taken then."""

    saved: CheckpointInfo | None = None
    memory: MemoryCheckpoint | None = None

    @property
    def step(self) -> int:
        """Steps that are done."""
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
