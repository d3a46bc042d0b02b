"""Buffers of models (batch norm's running statistics, masks) that are the same on every rank.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

ASK_BYTES = 1 << 20
"""Buffers of less are broadcast as they are: that costs no more than to ask which of them have changed."""


class BufferSync:
    """Rank 0's buffers for all, so that a checkpoint of them is the same whoever writes it, and a resumed run goes on from what
    every rank had."""

    def __init__(self) -> None:
        self._known: list[tuple[Any, int]] = []
        """Each buffer and its version counter after the last broadcast."""
        self._group: Any = None

    def share(self, buffers: Iterable[Any]) -> None:
        """Collective. Broadcast what any rank has changed since the last call."""
        import torch.distributed as dist

        every = list(buffers)
        if not every or dist.get_world_size() == 1:
            return
        large = sum(buffer.numel() * buffer.element_size() for buffer in every) > ASK_BYTES
        _broadcast(self._changed(every) if large else every)
        self._known = [(buffer, buffer._version) for buffer in every]

    def _changed(self, buffers: Sequence[Any]) -> list[Any]:
        import torch
        import torch.distributed as dist

        if self._group is None:
            # The answer is needed on the host: a collective of the device's would have it wait for the step.
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        same = {id(buffer) for buffer, version in self._known if buffer._version == version}
        changed = torch.tensor([id(buffer) not in same for buffer in buffers], dtype=torch.uint8)
        dist.all_reduce(changed, dist.ReduceOp.MAX, group=self._group)
        return [buffer for buffer, is_changed in zip(buffers, changed.tolist(), strict=True) if is_changed]


def _broadcast(buffers: Sequence[Any]) -> None:
    """Broadcast the buffers. Collective."""
    import torch
    import torch.distributed as dist

    by_dtype: dict[Any, list[Any]] = {}
    for buffer in buffers:
        by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for same in by_dtype.values():
        flat = torch.cat([buffer.detach().reshape(-1) for buffer in same])
        dist.broadcast(flat, src=0)
        for buffer, part in zip(same, flat.split([buffer.numel() for buffer in same]), strict=True):
            buffer.detach().copy_(part.view_as(buffer))
