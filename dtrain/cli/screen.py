"""What a terminal is like: its width and whether it has colours; text that fits it."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

from dtrain.common.printable import raw

NARROWEST = 20
CLEAR = "\033[H\033[2J"
STYLES = {"red": "\033[31m", "green": "\033[32m", "yellow": "\033[33m", "cyan": "\033[36m"}
PLAIN = "\033[0m"


def width() -> int | None:
    """Return the characters of a line of a terminal; None in a pipe, where lines are as long as they are."""
    return max(NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def folded(text: str, indent: int) -> str:
    """Fold a line into several that fit the screen, those after the first indented; words, such as paths, stay whole."""
    columns = width()
    if columns is None or len(text) <= columns:
        return text
    lead = text[: len(text) - len(text.lstrip())]
    rest = " " * (indent if columns > 2 * indent else 4)
    wrapper = textwrap.TextWrapper(columns, lead, rest, break_long_words=False, break_on_hyphens=False)
    wrapper.replace_whitespace = False
    return wrapper.fill(text.lstrip())


def coloured(text: str, style: str) -> str:
    """Put text in a colour, on a terminal, unless NO_COLOR is set."""
    if style not in STYLES or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"{STYLES[style]}{text}{PLAIN}"


def clear() -> None:
    """Clear the screen of a terminal; do nothing in a pipe."""
    if sys.stdout.isatty():
        raw(sys.stdout).write(CLEAR)
