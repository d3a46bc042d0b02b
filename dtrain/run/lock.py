"""The lease of the one supervisor of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtrain.common.errors import ClusterError


@dataclass(frozen=True)
class Lease:
    """The right to supervise a run; a machine that is cut off can lose its lock without noticing."""

    file: Path
    mark: str

    def held(self) -> bool:
        """Whether nobody else has become the run's supervisor meanwhile."""
        try:
            return self.file.read_text() == self.mark
        except OSError:
            return False

    def check(self) -> None:
        """Raises `ClusterError` where somebody has: the run is theirs now."""
        if not self.held():
            raise ClusterError(
                f"another supervisor has taken over this run: {self.file.read_text().strip()}",
                "This machine was taken for lost.",
            )
