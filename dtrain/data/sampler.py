"""Computes which samples a step trains on, as a pure function of (seed, epoch, step), whatever the number of workers.

The epochs' permutations are laid end to end and step t takes positions [t * batch, (t + 1) * batch): no sample is
left out at the end of an epoch, and a resumed run needs nothing but its step.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dtrain.common.errors import UserError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.job import Train

Indices = npt.NDArray[np.int64]
MASK = (1 << 64) - 1
BLOCK = 1 << 16
ROUNDS = 8
UNKNOWN_SIZE = 0
"""Size of a stream: its samples are numbered in the order in which they come."""


def mix(*words: int) -> int:
    """A 64-bit hash of integers (splitmix64's finalizer, Steele et al. 2014, chained)."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ (word & MASK)) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


OPTIMIZERS = 1 << 40
"""The number, in place of a shard's, of what optimizers draw."""


def step_seed(seed: int, step: int, shard: int) -> int:
    """Seed (63 bits) of all randomness in one shard of one step: dropout, augmentation."""
    return mix(seed, step, shard, 1) >> 1


def sample_seed(seed: int, position: int) -> int:
    """Seed (63 bits) of the randomness in fetching the sample at a position of the endless row of epochs (augmentation)."""
    return mix(seed, position, 2) >> 1


def permuted(positions: Indices, size: int, key: int) -> Indices:
    """Where a keyed permutation of [0, size) sends these positions, in constant memory.

    A Feistel network on just enough bits, walked along its cycle until the value is below `size`
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002)."""
    bits = max(2, (size - 1).bit_length())
    low = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << int(low)) - 1), np.uint64((1 << bits - int(low)) - 1)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> low, values[outside] & low_mask
        for turn in range(0, ROUNDS, 2):
            left ^= _scrambled(right, mix(key, turn)) & high_mask
            right ^= _scrambled(left, mix(key, turn + 1)) & low_mask
        values[outside] = left << low | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _scrambled(half: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    value = (half + np.uint64(key | 1)) * np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(29)
    value *= np.uint64(0x94D049BB133111EB)
    return value >> np.uint64(32)


@lru_cache(maxsize=4)
def _block(size: int, seed: int, epoch: int, block: int) -> Indices:
    """A stretch of an epoch's order, cached since consecutive steps read the same one."""
    positions = np.arange(block * BLOCK, min(size, (block + 1) * BLOCK), dtype=np.int64)
    return permuted(positions, size, mix(seed, epoch))


@dataclass(frozen=True)
class Sampler:
    """The order of `size` samples under the numbers of `train` (whose `shards` is set)."""

    size: int
    train: Train

    @property
    def shards(self) -> int:
        """Equal parts of the global batch."""
        return self.train.shards or 1

    @property
    def shard_size(self) -> int:
        """Samples of the largest shard; shards differ by one sample if their number does not divide the batch."""
        return math.ceil(self.train.global_batch / self.shards)

    def sizes(self, shards: range) -> list[int]:
        """Samples of each of these shards."""
        return [self._bound(shard + 1) - self._bound(shard) for shard in shards]

    def _bound(self, shard: int) -> int:
        return shard * self.train.global_batch // self.shards

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; a part of a batch at the end of the last epoch is filled from the next one."""
        if self.train.steps:
            return self.train.steps
        if self.size == UNKNOWN_SIZE:
            raise UserError("train.epochs needs data of a known length, and this is a stream: set train.steps instead")
        return max(1, math.ceil((self.train.epochs or 1) * self.size / self.train.global_batch))

    def begin(self, step: int, first_shard: int) -> int:
        """Position, in the endless row of epochs, of the first sample of a shard."""
        return step * self.train.global_batch + self._bound(first_shard)

    def indices(self, begin: int, count: int) -> Indices:
        """Samples at the positions [begin, begin + count), int64."""
        if self.size == UNKNOWN_SIZE:
            return np.arange(begin, begin + count, dtype=np.int64)
        parts = []
        position, end = begin, begin + count
        while position < end:
            epoch, offset = divmod(position, self.size)
            block = offset // BLOCK
            take = min(end - position, min(self.size, (block + 1) * BLOCK) - offset)
            if self.train.shuffle:
                start = offset - block * BLOCK
                parts.append(_block(self.size, self.train.seed, epoch, block)[start : start + take])
            else:
                parts.append(np.arange(offset, offset + take, dtype=np.int64))
            position += take
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def own_shards(shards: int, rank: int, world_size: int) -> range:
    """The contiguous whole shards of one worker process."""
    each = shards // world_size
    return range(rank * each, (rank + 1) * each)
