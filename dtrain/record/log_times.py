"""When a worker's log had which size: an index beside the log, by which `dtrain logs --since` finds a place in it.

Workers write to their logs themselves, so no line has a time; whoever looks at a log now and then (the agent, or the supervisor for
a node that does not see the run folder) notes its size. Entries are 16 bytes: seconds since 1970 (float64) and bytes (uint64)."""

from __future__ import annotations

import bisect
import struct
from pathlib import Path

from dtrain.common.files import read_at

EVERY_SECONDS = 5.0
"""Pause between two entries."""
SEARCH_BYTES = 1 << 16
"""The beginning of a line is not looked for further than this."""
ENTRY = struct.Struct("<dQ")


def index_of(log: Path) -> Path:
    """The index of a log."""
    return log.with_suffix(".times")


class LogTimes:
    """Writes the index of one log."""

    def __init__(self, log: Path) -> None:
        self._index = index_of(log)
        self._noted = 0.0
        self._size = -1

    def note(self, size: int, now: float) -> None:
        """The log has this size now (seconds since 1970). Raises `OSError`."""
        if size == self._size or now - self._noted < EVERY_SECONDS:
            return
        with open(self._index, "ab") as file:
            file.write(ENTRY.pack(now, size))
        self._noted, self._size = now, size


def offset_at(log: Path, since: float) -> int | None:
    """An offset of a log before everything that was written after this time (seconds since 1970), by EVERY_SECONDS at most;
    None if there is no index."""
    try:
        data = index_of(log).read_bytes()
    except FileNotFoundError:
        return None
    entries = list(ENTRY.iter_unpack(data[: len(data) // ENTRY.size * ENTRY.size]))
    before = bisect.bisect_right(entries, since, key=lambda entry: entry[0])
    return int(entries[before - 1][1]) if before else 0


def line_at(log: Path, offset: int) -> int:
    """The offset of the line that this one lies in, if its beginning is near."""
    begin = max(0, offset - SEARCH_BYTES)
    before = read_at(log, begin, offset - begin)
    return begin + before.rfind(b"\n") + 1 if b"\n" in before or not begin else offset
