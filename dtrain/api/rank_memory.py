"""How much memory a rank needs for a model."""

from __future__ import annotations

from dtrain.common.lazy_dataclass import dataclass


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, the most of all ranks. Activations and what libraries take come on top."""

    parameters: int
    gradients: int
    optimizer: int | None
    """Its state after the first step; None: not known."""
    block: int = 0
    """The largest part of the model that is gathered at a time; 0: nothing is gathered."""
    blocks: int = 0
    """How many parts are whole at once, copies of the gradients of one counted."""

    @property
    def split(self) -> int:
        """What more workers make less if the model is sharded."""
        return self.parameters + self.gradients + (self.optimizer or 0)

    @property
    def total(self) -> int:
        """All of it."""
        return self.split + self.block * self.blocks
