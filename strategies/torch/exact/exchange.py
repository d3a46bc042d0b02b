"""How the ranks of `train.exact` add their gradients in one fixed tree: who sends what to whom.

Every rank gets its slice of all ranks' sums, adds them in the tree and sends the sum of the slice to all: as many bytes as a ring
all_reduce moves. A device does that in two collectives. On the host, messages between pairs take fewer threads and copies than gloo's
collectives; two ranks swap whole buffers instead, which are as many bytes in one exchange. Every rank calls the same methods of the
same exchanges in the same order.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..watch.network import SUSPENDED


class Exchange(Protocol):
    """Gradients of the same size between the ranks, in buffers that are kept."""

    def send(self, buffer: Any) -> None:
        """Begin to send this rank's sum."""

    def gather(self, scale: float) -> None:
        """Add what arrived and scale it, and begin to send this rank's share of it if the others need it; once is enough."""

    def finish(self) -> None:
        """Wait for the shares of the others: the buffer has the scaled sum over all ranks."""


def exchange_for(buffer: Any, number: int, rank: int, world_size: int) -> Exchange:
    """Return the exchange for buffers like this one; `number` distinguishes those that are under way at the same
    time."""
    if buffer.device.type != "cpu":
        return Collectives(buffer, world_size)
    return Swap(buffer, number, rank) if world_size == 2 else Slices(buffer, number, rank, world_size)


def tree_sum(parts: Any) -> Any:
    """The sum over the first dimension, whose length is a power of two, neighbours first: in place, in the first of the parts."""
    distance = 1
    while distance < parts.shape[0]:
        parts[0 :: 2 * distance].add_(parts[distance :: 2 * distance])
        distance *= 2
    return parts[0]


def scaled(total: Any, scale: float) -> Any:
    """A sum times a power of two, in place, in one pass; added to 0, so that there are no negative zeros."""
    import torch

    return torch.add(total.new_zeros(()), total, alpha=scale, out=total)


class Collectives:
    """Exchanges on a device by `all_to_all` and `all_gather`."""

    def __init__(self, like: Any, world_size: int) -> None:
        size = like.numel()
        share = -(-size // world_size)
        self._padded = like.new_zeros(share * world_size) if size % world_size else None
        self._received = like.new_empty((world_size, share))
        self._work: Any = None
        self._gathering = False

    def send(self, buffer: Any) -> None:
        import torch.distributed as dist

        self._buffer = buffer
        if self._padded is not None:
            self._padded[: buffer.numel()] = buffer
        self._sent = buffer if self._padded is None else self._padded
        self._work = dist.all_to_all_single(self._received.view(-1), self._sent, async_op=True)
        self._gathering = False

    def gather(self, scale: float) -> None:
        import torch.distributed as dist

        if self._gathering:
            return
        self._gathering = True
        self._work.wait()
        mine = scaled(tree_sum(self._received), scale)
        self._work = dist.all_gather_into_tensor(self._sent, mine, async_op=True)

    def finish(self) -> None:
        self._work.wait()
        if self._padded is not None:
            self._buffer.copy_(self._padded[: self._buffer.numel()])


class Swap:
    """Exchanges on the host, between two ranks."""

    def __init__(self, like: Any, number: int, rank: int) -> None:
        self._received = like.new_empty(like.numel())
        self._messages = Messages(number, 1 - rank)
        self._summed = False

    def send(self, buffer: Any) -> None:
        self._buffer = buffer
        self._messages.swap([buffer], [self._received])
        self._summed = False

    def gather(self, scale: float) -> None:
        """Which of two is added to which makes no difference."""
        if self._summed:
            return
        self._summed = True
        self._messages.wait()
        scaled(self._buffer.add_(self._received), scale)

    def finish(self) -> None:
        pass


class Slices:
    """Exchanges on the host, between any number of ranks."""

    def __init__(self, like: Any, number: int, rank: int, world_size: int) -> None:
        self._rank = rank
        own = like.tensor_split(world_size)[rank].numel()
        self._received = like.new_empty((world_size, own))
        others = [other for other in range(world_size) if other != rank]
        self._messages = Messages(number, *others)
        self._others = others
        self._gathering = False

    def send(self, buffer: Any) -> None:
        self._slices = buffer.tensor_split(len(self._received))
        self._messages.swap(self._of_others(self._slices), self._of_others(self._received))
        self._received[self._rank] = self._slices[self._rank]
        self._gathering = False

    def gather(self, scale: float) -> None:
        if self._gathering:
            return
        self._gathering = True
        self._messages.wait()
        mine = self._slices[self._rank]
        mine.copy_(scaled(tree_sum(self._received), scale))
        self._messages.swap([mine] * len(self._others), self._of_others(self._slices))

    def finish(self) -> None:
        self._messages.wait()

    def _of_others(self, things: Any) -> list[Any]:
        return [things[other] for other in self._others]


class Messages:
    """Messages between this rank and some others, each of which sends one back."""

    def __init__(self, number: int, *others: int) -> None:
        self._number = number
        self._others = others
        self._works: list[Any] = []

    def swap(self, given: Sequence[Any], taken: Sequence[Any]) -> None:
        """Begin to send one message to each of the others, and to receive one from each. Empty ones are left out."""
        import torch.distributed as dist

        for other, message in zip(self._others, given, strict=True):
            if message.numel():
                self._works.append(dist.isend(message, other, tag=self._number))
        for other, message in zip(self._others, taken, strict=True):
            if message.numel():
                self._works.append(dist.irecv(message, other, tag=self._number))

    def wait(self) -> None:
        """Until all have arrived. That one never does is for dtrain to find, as with collectives."""
        works, self._works = self._works, []
        for work in works:
            work.wait(SUSPENDED)
