"""What each worker trained on: one record a step, read for progress, for the audit and for the account of time."""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.common.files import Appender
from dtrain.run.folder import RunDir

if TYPE_CHECKING:  # the agent and the supervisor read ledgers, and are not to pay for numpy
    from dtrain.data.sampler import Indices


RECORD = struct.Struct("<qqIId")


@dataclass(frozen=True)
class Entry:
    """One step of one worker."""

    step: int
    """Counted from 0."""
    begin: int
    """Position of its first sample in the endless row of epochs."""
    count: int
    checksum: int
    """CRC-32 of the sample indices, little-endian int64."""
    time: float
    """Seconds since 1970, when the step was done."""


def checksum(indices: Indices) -> int:
    """What a ledger keeps of the samples themselves."""
    return zlib.crc32(indices.astype("<i8", copy=False).tobytes())


class Ledger:
    """A worker's own ledger of one attempt; a record is one write, so a kill loses none that was made."""

    def __init__(self, path: Path) -> None:
        self._file = Appender(path)

    def add(self, step: int, begin: int, indices: Indices) -> None:
        """A step is done."""
        self._file.append(RECORD.pack(step, begin, len(indices), checksum(indices), time.time()))


def read(path: Path) -> Iterator[Entry]:
    """The entries of a ledger; a record cut short by a full disk ends it."""
    data = path.read_bytes() if path.exists() else b""
    for record in RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]):
        yield Entry(*record)


def last_step(path: Path) -> int | None:
    """Steps done according to the newest record, or None where there is none; costs one small read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END) // RECORD.size * RECORD.size
            if not size:
                return None
            file.seek(size - RECORD.size)
            return int(RECORD.unpack(file.read(RECORD.size))[0]) + 1
    except FileNotFoundError:
        return None


def attempts(run: RunDir) -> dict[int, list[list[Entry]]]:
    """Attempt → one list of entries a rank."""
    found: dict[int, list[list[Entry]]] = defaultdict(list)
    for path in sorted(run.ledgers.glob("attempt-*.bin")):
        if match := re.match(r"attempt-(\d+)-rank-\d+", path.name):
            found[int(match[1])].append(list(read(path)))
    return dict(sorted(found.items()))
