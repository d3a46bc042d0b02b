"""The event log of a run: everything that happens, one JSON line each, written by the supervisor and read by everyone else."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtrain.common.errors import require_format
from dtrain.common.files import Appender, flush_folder, read_at
from dtrain.common.printable import printable
from dtrain.record.event import FORMAT
from dtrain.record.events import Event, RunStarted, from_log

ESCAPED = "\\u00"
"""In every line of JSON with a control character that is no line feed."""
RESERVE_BYTES = 1 << 17
READ_BYTES = 1 << 22
"""Read at a time, so that a long log is never in memory as a whole."""


class EventLog:
    """The writing end; may be used from several threads.

    A small reserve of disk space is given back at the close, so that the end of a run fits on a disk that is full."""

    def __init__(self, path: Path, *listeners: Callable[[Event], None]) -> None:
        self.path = path
        self._file = Appender(path)
        if not _ends_a_line(path):  # a supervisor was killed in the middle of a write
            self._file.append(b"\n")
        flush_folder(path.parent)
        self._adding = threading.Lock()
        self._listeners = listeners
        self._reserve = path.with_name(f".{path.name}.reserve")
        with suppress(OSError):
            self._reserve.write_bytes(bytes(RESERVE_BYTES))

    def add(self, event: Event) -> None:
        """Append an event with the time of now."""
        stamped = dataclasses.replace(event, time=round(time.time(), 4))
        line = json.dumps(stamped.to_dict(), separators=(",", ":"))
        if ESCAPED in line:
            stamped = from_log(_printable(stamped.to_dict()))
            line = json.dumps(stamped.to_dict(), separators=(",", ":"))
        with self._adding:
            self._file.append(line.encode() + b"\n")
        for hear in self._listeners:
            hear(stamped)

    def flush(self) -> None:
        """Make what was added durable (fsync); a full disk keeps it pending."""
        with self._adding:
            self._file.flush()

    @property
    def problem(self) -> str:
        """Why the last write failed, or ''."""
        return self._file.problem

    def close(self) -> None:
        """No more events from this supervisor."""
        self._reserve.unlink(missing_ok=True)
        self._file.close()


class Reader:
    """The reading end: each call gives the events of whole lines that are new since the last one."""

    def __init__(self, path: Path, only: type[Event] | None = None, begin: int = 0) -> None:
        self._path = path
        self._offset = begin
        """Of the next line."""
        names = (only.kind_name, only.former_name) if only else ()
        self._marks = tuple(f'"event":"{name}"'.encode() for name in names if name)
        """Byte strings of which every line of the only wanted kind of event has one: other lines are not parsed."""

    @property
    def position(self) -> int:
        """In the log, behind the last event that was given."""
        return self._offset

    def new(self) -> Iterator[Event]:
        """Events not seen yet; lines that are not whole, or no JSON, are left out. Raises `NewerFormat` at the start of a supervisor of a
        newer version."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                while lines := file.readlines(READ_BYTES):
                    for line in lines:
                        if not line.endswith(b"\n"):
                            return
                        self._offset += len(line)
                        wanted = not self._marks or any(mark in line for mark in self._marks)
                        event = _parsed(line) if wanted else None
                        if isinstance(event, RunStarted):
                            require_format(str(self._path), event.format, FORMAT)
                        if event is not None:
                            yield event
        except FileNotFoundError:
            return


def _parsed(line: bytes) -> Event | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or "event" not in fields:
        return None
    return from_log(_printable(fields) if ESCAPED.encode() in line else fields)


def _printable(value: Any) -> Any:
    """The same fields with printable texts: many of them are said by user code."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): _printable(part) for key, part in value.items()}
    return [_printable(part) for part in value] if isinstance(value, list | tuple) else value


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        return not end or read_at(path, end - 1, 1) == b"\n"


def read(path: Path, end: int | None = None) -> list[Event]:
    """Return all events so far, or those before a position in the log."""
    reader, found = Reader(path), list[Event]()
    for event in reader.new():
        if end is not None and reader.position > end:
            break
        found.append(event)
    return found
