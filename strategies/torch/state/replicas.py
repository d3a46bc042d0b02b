"""Whether replicated parameters and buffers are the same on every rank, from a sample of their bits. Importing this module imports no
framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtrain.common.errors import UserError

SAMPLED = 1024
"""Most elements of a tensor that are looked at, spread over all of it."""
MOST_SHOWN = 3


def check(named: Sequence[tuple[str, Any]], ranks: int, group: Any, name: str) -> None:
    """Collective in a gloo group of all ranks that user code does not know. Raise `UserError`, which begins with the task's name, on
    every rank if a tensor differs between them."""
    import torch
    import torch.distributed as dist

    if ranks == 1 or not named:
        return
    own = torch.stack([_fingerprint(tensor) for _, tensor in named]).cpu()
    extremes = torch.cat([own, -own])
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group)
    apart = (extremes[: len(named)] != -extremes[len(named) :]).nonzero().reshape(-1).tolist()
    if not apart:
        return
    everyones = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(everyones, own, group)
    shown = [
        f"{named[place][0]} (on {_others([int(one[place]) for one in everyones])})" for place in apart[:MOST_SHOWN]
    ]
    more = f" and {len(apart) - MOST_SHOWN} more" if len(apart) > MOST_SHOWN else ""
    raise UserError(
        f"{name}: the ranks train different models: {', '.join(shown)}{more} differ from rank 0's. Gradients that are computed past the "
        "model that dtrain gives (model.module.…, or a copy of it) are not averaged: call that model, or its methods"
    )


def _fingerprint(tensor: Any) -> Any:
    """A number that follows from the bits of a sample; one dimension of no size."""
    import torch

    flat = tensor.detach().reshape(-1)
    bits = flat[:: max(1, flat.numel() // SAMPLED)].contiguous().view(torch.uint8).to(torch.int64)
    # Below 2^62, so that the negative of each exists.
    return (bits * torch.arange(1, bits.numel() + 1, device=bits.device)).sum() % (1 << 61)


def _others(fingerprints: Sequence[int]) -> str:
    ranks = [rank for rank, one in enumerate(fingerprints) if one != fingerprints[0]]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
