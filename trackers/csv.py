"""Curves as a CSV file in the run folder, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain.api.tracker import Ending, Entry, TrackedRun

COLUMNS = ("entry", "step", "time", "name", "value", "mark")
FILE = "curves.csv"


@dataclass(frozen=True)
class CsvOptions:
    """The file is trackers/csv/curves.csv in the run folder."""


class Csv:
    """A CSV file in the run folder: a row for each value, and one for each mark."""

    Options = CsvOptions

    def __init__(self, options: CsvOptions) -> None:
        self._fd = -1

    def open(self, run: TrackedRun) -> int:
        """The newest entry in the file may lack rows: it is dropped and logged again."""
        path = run.folder / FILE
        held, size = _whole(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._fd, size)
        if not size:
            self._write([COLUMNS])
        return held

    def log(self, entries: Sequence[Entry]) -> None:
        rows: list[tuple[object, ...]] = []
        for entry in entries:
            begin = (entry.number, entry.step, entry.time)
            rows += [(*begin, name, value, "") for name, value in entry.values.items()]
            if entry.kind or not entry.values:
                rows.append((*begin, "", "", entry.text))
        self._write(rows)

    def _write(self, rows: Sequence[Sequence[object]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        data = text.getvalue().encode()
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self, ending: Ending | None) -> None:
        os.close(self._fd)


def _whole(path: Path) -> tuple[int, int]:
    """How many entries of a file are whole for certain, and how many bytes they and the head take."""
    if not path.exists():
        return 0, 0
    held, size, offset = 0, 0, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            first = line.partition(b",")[0]
            if number == 0:
                size = len(line)
            elif first.isdigit() and int(first) >= held + 1:
                held, size = int(first), offset
            offset += len(line)
    return held, size
