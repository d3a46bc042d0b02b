"""Text from outside (errors and output of user code, names in files) without what a terminal would take for a command."""

from __future__ import annotations

import io
import re
from typing import Any, TextIO, cast

COLOUR = r"\x1b\[(?:[0-9;:]*m|K)"
"""Sequences of a terminal that colour, or erase the rest of a line."""
CONTROL = r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]"
"""All but backspace, tab, line feed and carriage return."""
_PLAIN = re.compile(CONTROL)
_COLOURED = re.compile(f"({COLOUR})|({CONTROL})")


def printable(text: str, *, colours: bool = False) -> str:
    """Return the text with control characters written out (`\\x1b`), which may clear a screen, set a title or type on a keyboard. With
    `colours`, sequences that only colour are left."""
    if not _PLAIN.search(text):
        return text
    if not colours:
        return _PLAIN.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return _COLOURED.sub(lambda found: found[1] or f"\\x{ord(found[2]):02x}", text)


class PrintableStream(io.TextIOWrapper):
    """A text stream that writes what is printable, and colours."""

    def write(self, text: str) -> int:
        super().write(printable(text, colours=True))
        return len(text)


def raw(stream: TextIO) -> TextIO:
    """Return a stream that writes everything: for views that draw on the whole screen, whose texts are printable already."""
    return cast(TextIO, _RawStream(stream))


class _RawStream:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return (
            io.TextIOWrapper.write(self._stream, text)
            if isinstance(self._stream, PrintableStream)
            else self._stream.write(text)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
