"""The order in memory of an optimizer's tensors: a product with a matrix that lies transposed has other last bits than one with its copy.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dtrain.common.errors import UserError

from .packing import leaves

SECTION = "layouts"
"""Of the orders, by the optimizer's name, as JSON."""


def orders(state: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return, by their place in a state, the dimensions of tensors from the largest stride to the smallest: of those that are not contiguous,
    and of those that are whole though their parameter is sharded. Raises `UserError` for partial sums, which no checkpoint holds."""
    found = {}
    for path, leaf in leaves(state):
        if not hasattr(leaf, "stride") or leaf.is_sparse:
            continue
        if hasattr(leaf, "to_local"):
            if any(one.is_partial() for one in leaf.placements):
                raise UserError(
                    f"the optimizer keeps '{path[-1]}' of {path[0]} in partial sums of the ranks, which checkpoints do not hold: take "
                    "strategy: ddp, or another optimizer"
                )
        elif hasattr(parameters[path[0]], "to_local") or (leaf.ndim > 1 and not leaf.is_contiguous()):
            strides = leaf.stride()
            found[place(path)] = sorted(range(leaf.ndim), key=strides.__getitem__, reverse=True)
    return found


def place(path: Sequence[Any]) -> str:
    """Return the place of a value in nested dicts and lists as one text."""
    return "\0".join(map(str, path))


def empty(shape: Sequence[int], order: Sequence[int] | None, dtype: Any, device: Any) -> Any:
    """Return a tensor without content with this order in memory; a contiguous one without."""
    import torch

    order = order or range(len(shape))
    made = torch.empty([shape[one] for one in order], dtype=dtype, device=device)
    return made.permute([list(order).index(one) for one in range(len(shape))])
