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


def part_of(target: Any) -> tuple[Any, tuple[int, ...]] | None:
    """This rank's part of a sharded tensor, and where that begins in the whole; None for a tensor that is whole here."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(target, DTensor):
        return None
    _, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    return target.to_local(), tuple(offset)
