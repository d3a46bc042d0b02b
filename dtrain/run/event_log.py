"""The run's diary: everything that happens, one JSON line each, written by the supervisor and read by everyone else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dtrain.common.files import Appender

Event = dict[str, Any]
"""`time` (seconds since 1970), `event` (its name) and the fields of that name."""


class EventLog:
    """The writing end."""

    def __init__(self, path: Path) -> None:
        self._file = Appender(path)
        self._adding = threading.Lock()

    def add(self, event: str, **fields: Any) -> None:
        """Something happened."""
        line = json.dumps({"time": round(time.time(), 4), "event": event} | fields, separators=(",", ":"), default=str)
        with self._adding:
            self._file.append(line.encode() + b"\n")

    def close(self) -> None:
        """No more events from this supervisor."""
        self._file.close()


class Reader:
    """The reading end: each call gives the whole lines that are new since the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[Event]:
        """Events not seen yet; lines that are not whole, or no JSON, are left out."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


def read(path: Path) -> list[Event]:
    """All events so far."""
    return list(Reader(path).new())
