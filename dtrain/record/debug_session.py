"""A session of `dtrain debug`: the request, and the two files of the run folder that its terminal and the supervisor talk through.

Files reach a supervisor on another node, which a Unix socket does not; their folder is private to the user. Nothing of it reaches
the event log but that a rank stopped, why, and for how long.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import from_dict, to_dict

INPUT = "input.jsonl"
"""Name of the file with what is typed: a line each (`DebugLine`)."""
OUTPUT = "output.jsonl"
"""Name of the file with the debugger's output (`DebugOutput`)."""
Reason = Literal["breakpoint", "exception", "step"]
"""Why a rank stopped: a `breakpoint()`, an exception that ends it, or a step that somebody asked for."""


@dataclass(frozen=True)
class DebugRequest:
    """Somebody wants to debug a rank."""

    rank: int | None = None
    """None: the first one that waits for a debugger or fails; else 0."""
    at_step: int | None = None
    """Not before this step, counted from 0; None: as soon as all ranks can be told."""
    on_exception: bool = False
    """Not before an exception ends a rank."""


@dataclass(frozen=True)
class DebugLine:
    """A line that was typed."""

    text: str | None
    """None: nobody types any more."""


@dataclass(frozen=True)
class DebugOutput:
    """Something to show."""

    text: str
    prompt: str = ""
    """If it is not '', a line is waited for, after this."""
    notice: bool = False
    """Whether the text is dtrain's, not the debugger's."""
    ended: bool = False
    """The session is over."""


class Mailbox:
    """New lines of a file that another process appends to; a line that is not whole yet does not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Raises `OSError` if the file cannot be read, `ValueError` if a line is none of ours."""
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def open_session(folder: Path) -> None:
    """Make the folder of a session and its files, for this user alone."""
    folder.mkdir(mode=0o700, parents=True)
    for name in (INPUT, OUTPUT):
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o600))


def append(path: Path, message: DebugLine | DebugOutput) -> None:
    """Add a line to a file of a session; raises `OSError`."""
    with open(path, "a") as file:
        file.write(json.dumps(to_dict(message)) + "\n")


def lines(box: Mailbox) -> list[DebugLine]:
    """Return what was typed since the last call."""
    return [from_dict(DebugLine, body) for body in box.new()]


def outputs(box: Mailbox) -> list[DebugOutput]:
    """Return the output since the last call."""
    return [from_dict(DebugOutput, body) for body in box.new()]
