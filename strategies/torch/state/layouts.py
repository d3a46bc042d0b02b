"""The order in memory of an optimizer's tensors: a product with a matrix that lies transposed has other last bits than one with its copy.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .packing import leaves

SECTION = "layouts"
"""Of the orders, by the optimizer's name, as JSON."""


def orders(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return, by their place in a state, the dimensions of tensors that are not contiguous, from the largest stride to the smallest."""
    found = {}
    for path, leaf in leaves(state):
        strided = hasattr(leaf, "stride") and not hasattr(leaf, "to_local") and not leaf.is_sparse
        if strided and leaf.ndim > 1 and not leaf.is_contiguous():
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
