"""The part of a tensor that a rank holds. Importing this module imports no framework."""

from __future__ import annotations

from typing import Any


def fill(target: Any, whole: Any) -> None:
    """Put a value into a tensor or, where that is sharded, this rank's part of it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        local = target.to_local()
        part = distribute_tensor(whole.to(local.device), target.device_mesh, target.placements, src_data_rank=None)
        local.copy_(part.to_local())
    else:
        target.copy_(whole)
