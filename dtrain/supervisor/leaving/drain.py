"""The agreement of all ranks on the step to save and leave at."""

from __future__ import annotations

from collections.abc import Set


class DrainAgreement:
    """Collects the step of a drain: each rank proposes the first step that it will not begin without an answer, and the
    highest proposal is the step.

    Every rank can still reach that step and none is beyond it, so the agreement costs the training no collective."""

    def __init__(self) -> None:
        self._proposals: dict[int, int] = {}
        self.step: int | None = None
        """The agreed step; None before there is one."""

    def propose(self, rank: int, step: int) -> None:
        """A rank waits at this step."""
        self._proposals[rank] = step

    def agree(self, running: Set[int]) -> int | None:
        """The step, once, as soon as every rank that still runs has proposed; None otherwise."""
        if self.step is not None or not self._proposals or not self._proposals.keys() >= running:
            return None
        self.step = max(self._proposals.values())
        return self.step
