"""The samples that each worker trained on: one record a step, read for progress, for the audit and for goodput."""

from __future__ import annotations

import re
import struct
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.common.files import Appender
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.folder import RunDir

if TYPE_CHECKING:  # the agent and the supervisor read ledgers, and are not to pay for numpy
    from dtrain.data.sampler import Indices


RECORD = struct.Struct("<qqIId")
COUNT_BITS = 30
"""Of a record's third field that are the number of samples; the two above them say whether they were left out."""


class LeftOut(IntEnum):
    """Why a step was done without its samples: the optimizer did not step."""

    NO = 0
    NONFINITE = 1
    """The loss or gradient was not finite (`train.on_nonfinite: skip`, `precision: fp16`)."""
    SPIKE = 2
    """The loss or gradient jumped (`train.spike`)."""
    ROLLED_BACK = 3
    """An earlier attempt went back to a checkpoint before the step, for one of these reasons."""


@dataclass(frozen=True)
class Entry:
    """One step of one worker."""

    step: int
    """Counted from 0."""
    begin: int
    """Position of its first sample in the concatenation of all epochs."""
    count: int
    checksum: int
    """CRC-32 of the sample indices, little-endian int64; of a stream, the sum modulo 2^32 of those of the samples' contents."""
    time: float
    """Seconds since 1970, when the step was done."""
    left_out: LeftOut = LeftOut.NO


def checksum(indices: Indices) -> int:
    """Return the checksum of the samples that a ledger keeps."""
    return zlib.crc32(indices.astype("<i8", copy=False).tobytes())


class Ledger:
    """A worker's own ledger of one attempt; a record is one write, so a kill loses none that was made."""

    def __init__(self, path: Path) -> None:
        self._file = Appender(path)

    def add(
        self, step: int, begin: int, indices: Indices, left_out: LeftOut = LeftOut.NO, content: int | None = None
    ) -> None:
        """A step is done, with these samples or without them; `content` is the sum of the checksums of a stream's."""
        count = len(indices) | left_out << COUNT_BITS
        digest = checksum(indices) if content is None else content % (1 << 32)
        self._file.append(RECORD.pack(step, begin, count, digest, time.time()))


class LedgerFile:
    """A ledger as it is read: records of a fixed size with consecutive steps, so that a step is found without reading the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        """Records; one that was cut short by a full disk does not count."""
        try:
            return self.path.stat().st_size // RECORD.size
        except FileNotFoundError:
            return 0

    def at(self, index: int) -> Entry | None:
        """The record at a position, negative ones from the end; None if there is none."""
        size = len(self)
        index = index + size if index < 0 else index
        return next(self.read(index, index + 1), None) if 0 <= index < size else None

    def read(self, first: int, last: int) -> Iterator[Entry]:
        """The records at the positions [first, last)."""
        with open(self.path, "rb") as file:
            file.seek(first * RECORD.size)
            data = file.read(max(0, last - first) * RECORD.size)
        for record in RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]):
            step, begin, count, digest, done = record
            yield Entry(step, begin, count & (1 << COUNT_BITS) - 1, digest, done, LeftOut(count >> COUNT_BITS))

    def steps(self, first: int, last: int) -> Iterator[Entry]:
        """The records of the steps [first, last)."""
        begin = self.at(0)
        if begin is not None:
            yield from self.read(max(0, first - begin.step), min(len(self), last - begin.step))


def last_step(path: Path) -> int | None:
    """Steps done according to the newest record, or None if there is none; costs one small read."""
    newest = LedgerFile(path).at(-1)
    return newest.step + 1 if newest else None


def attempts(run: RunDir) -> dict[int, list[LedgerFile]]:
    """Attempt → the ledgers of its ranks, in the order of ranks."""
    found: dict[int, list[LedgerFile]] = defaultdict(list)
    for path in sorted(run.ledgers.glob("attempt-*.bin")):
        if match := re.match(r"attempt-(\d+)-rank-\d+", path.name):
            found[int(match[1])].append(LedgerFile(path))
    return dict(sorted(found.items()))
