"""The text of a framework's error, shortened for a message."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The type of an error and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
