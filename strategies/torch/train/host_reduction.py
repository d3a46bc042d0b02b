"""The sum of sharded gradients on CPUs, without the two copies that torch keeps of them. Importing this module imports no framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def reduce_scatter() -> Any:
    """A reduce-scatter for gloo, with the bits of gloo's own, which sums a copy; FSDP keeps what it summed until the next block's gradients
    are there, for the sake of streams that a CPU does not have."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

    class InPlace(ReduceScatter):  # type: ignore[misc]
        """Sums all in the place of the gradients, takes this rank's part, and frees the rest."""

        def allocate(self, size: Sequence[Any], *, dtype: Any, device: Any) -> Any:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> None:  # noqa: FBT001, FBT002
            dist.all_reduce(input_tensor, op, group)
            output_tensor.copy_(input_tensor.view(group.size(), -1)[group.rank()])
            input_tensor.untyped_storage().resize_(0)

    return InPlace()
