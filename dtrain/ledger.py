"""What each worker trained on: one record a step, read for progress, for the audit and for the account of time."""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.events import Appender
from dtrain.rundir import RunDir

if TYPE_CHECKING:  # the agent and the supervisor read ledgers, and are not to pay for numpy
    from dtrain.data import Indices, Sampler

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


@dataclass(frozen=True)
class Audit:
    """What the committed history of a run was trained on."""

    steps: int
    samples: int
    twice: int
    """Samples that stand in more than one record of their committed step."""
    skipped: int
    """Samples of a committed step that no worker trained on."""
    altered: int
    """Records whose samples are not those that seed, epoch and step give."""
    repeated_steps: int = 0
    """Steps that were lost in a failure and trained again; they are no part of the committed history."""
    problems: tuple[str, ...] = field(default=())

    @property
    def clean(self) -> bool:
        """Every sample of every committed step exactly once."""
        return not (self.twice or self.skipped or self.altered)


def attempts(run: RunDir) -> dict[int, list[list[Entry]]]:
    """Attempt → one list of entries a rank."""
    found: dict[int, list[list[Entry]]] = defaultdict(list)
    for path in sorted(run.ledgers.glob("attempt-*.bin")):
        if match := re.match(r"attempt-(\d+)-rank-\d+", path.name):
            found[int(match[1])].append(list(read(path)))
    return dict(sorted(found.items()))


def audit(history: dict[int, list[list[Entry]]], starts: dict[int, int], steps: int, sampler: Sampler) -> Audit:
    """Check the first `steps` steps: the last attempt that began at or before a step owns it.

    `starts` gives the step each attempt began at; what an older attempt did from there on was rolled back."""
    owner: dict[int, int] = {}
    for attempt in sorted(starts):
        for step in range(starts[attempt], steps):
            owner[step] = attempt
    covered: dict[int, list[Entry]] = defaultdict(list)
    done = 0
    for attempt, ranks in history.items():
        for entry in (entry for rank in ranks for entry in rank):
            if owner.get(entry.step) == attempt:
                covered[entry.step].append(entry)
        done += len({entry.step for rank in ranks for entry in rank if entry.step < steps})
    twice = skipped = altered = 0
    problems: list[str] = []
    for step in range(steps):
        doubled, missing = _coverage(covered[step], sampler.begin(step, 0), sampler.train.global_batch)
        wrong = sum(checksum(sampler.indices(entry.begin, entry.count)) != entry.checksum for entry in covered[step])
        if doubled or missing or wrong:
            problems.append(f"step {step}: {doubled} samples twice, {missing} skipped, {wrong} records altered")
        twice, skipped, altered = twice + doubled, skipped + missing, altered + wrong
    return Audit(
        steps, steps * sampler.train.global_batch, twice, skipped, altered, max(0, done - steps), tuple(problems)
    )


def _coverage(entries: Iterable[Entry], begin: int, count: int) -> tuple[int, int]:
    """Samples that are there twice, and samples that are not there, in [begin, begin + count)."""
    twice, position = 0, begin
    missing = 0
    for entry in sorted(entries, key=lambda entry: entry.begin):
        missing += max(0, entry.begin - position)
        twice += max(0, min(position, entry.begin + entry.count) - entry.begin)
        position = max(position, entry.begin + entry.count)
    return twice, missing + max(0, begin + count - position)
