"""Curves as TensorBoard's event files in the run folder, written without TensorFlow."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.api.tracker import Ending, Entry, TrackedRun

from .installation import missing

NAME = "events.out.tfevents"
LENGTH = struct.Struct("<Q")
AROUND_BYTES = 4 + 4
"""Checksums of a record's length and of its data."""


@dataclass(frozen=True)
class TensorBoardOptions:
    """The files are in trackers/tensorboard in the run folder; `dtrain tensorboard` shows them."""


class TensorBoard:
    """TensorBoard's event files in the run folder; `dtrain tensorboard` shows them."""

    Options = TensorBoardOptions

    def __init__(self, options: TensorBoardOptions) -> None:
        pass

    @staticmethod
    def missing_here() -> str:
        return missing("tensorboard")

    def open(self, run: TrackedRun) -> int:
        """Each opening begins a new file, since TensorBoard may be reading the one before."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        files = sorted(run.folder.glob(f"{NAME}.*"))
        newest = max((int(path.name.split(".")[3]) for path in files), default=0)
        number = max(int(time.time()), newest + 1)
        self._run = run
        self._file = open(run.folder / f"{NAME}.{number:012d}.{socket.gethostname()}.{os.getpid()}", "xb")
        self._writer = RecordWriter(self._file)
        self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._writer.flush()
        return sum(max(0, records(path) - 1) for path in files)

    def log(self, entries: Sequence[Entry]) -> None:
        """An entry is a record, so that counting records tells how many there are."""
        from tensorboard.compat.proto.event_pb2 import Event

        for entry in entries:
            event = Event(wall_time=entry.time, step=entry.step)
            for name, value in entry.values.items():
                event.summary.value.add(tag=name, simple_value=value)
            if entry.kind:
                _add_text(event, "run/marks", entry.text)
            if entry.number == 0:
                _add_text(event, "run/recipe", f"```\n{json.dumps(self._run.config, indent=1)}\n```")
            self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self, ending: Ending | None) -> None:
        self._file.close()


def records(path: Path) -> int:
    """The whole records in an event file; the last one may have been cut short by a kill."""
    count, offset, size = 0, 0, path.stat().st_size
    with open(path, "rb") as file:
        while offset + LENGTH.size <= size:
            file.seek(offset)
            (length,) = LENGTH.unpack(file.read(LENGTH.size))
            offset += LENGTH.size + AROUND_BYTES + length
            count += offset <= size
    return count


def _add_text(event: Any, tag: str, text: str) -> None:
    """A text that TensorBoard's text plugin shows at this step."""
    value = event.summary.value.add(tag=tag)
    value.metadata.plugin_data.plugin_name = "text"
    value.tensor.dtype = 7  # DT_STRING
    value.tensor.tensor_shape.dim.add(size=1)
    value.tensor.string_val.append(text.encode())
