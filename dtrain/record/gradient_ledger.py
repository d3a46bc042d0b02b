"""A checksum of the gradient of each shard in each step (`train.exact`), by which a repeated computation is compared with the first one.

The checksum is the sum of a gradient's bits, value by value, modulo 2^32: it does not depend on how a strategy cuts the gradient into
pieces, and one flipped bit changes it."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from dtrain.common.files import Appender
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.folder import RunDir

RECORD = struct.Struct("<qqQ")
NAME = re.compile(r"gradients-attempt-(\d+)-rank-(\d+)\.bin")


@dataclass(frozen=True)
class ShardGradient:
    """The gradient of one shard in one step."""

    checksum: int
    attempt: int
    rank: int
    """Rank that computed it."""


class GradientLedger:
    """The checksums that one worker writes in one attempt."""

    def __init__(self, path: Path) -> None:
        self._file = Appender(path)

    def add(self, step: int, shards: Sequence[int], checksums: Sequence[int]) -> None:
        """The gradients of this worker's shards in a step."""
        self._file.append(b"".join(RECORD.pack(step, *pair) for pair in zip(shards, checksums, strict=True)))


def read(run: RunDir, starts: Mapping[int, int]) -> dict[tuple[int, int], ShardGradient]:
    """(step, shard) → its gradient in the committed history; `starts` gives the step that each attempt began at: what an older
    attempt did from there on was rolled back."""
    found: dict[tuple[int, int], ShardGradient] = {}
    for path in sorted(run.ledgers.glob("gradients-*.bin")):
        match = NAME.fullmatch(path.name)
        if match is None:
            continue
        attempt, rank = int(match[1]), int(match[2])
        end = min((step for number, step in starts.items() if number > attempt), default=None)
        data = path.read_bytes()
        for step, shard, checksum in RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]):
            if end is None or step < end:
                found[step, shard] = ShardGradient(checksum, attempt, rank)
    return found
