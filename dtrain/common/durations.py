"""Durations as a person writes them."""

from __future__ import annotations

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MOST_SECONDS = 30 * 86400


def seconds_of(text: str) -> float | None:
    """`30s`, `10m`, `2h`, `1d` in seconds; None if it is no duration of at most 30 days."""
    try:
        seconds = float(text[:-1]) * UNITS[text[-1]]
    except (ValueError, LookupError):
        return None
    return seconds if 0 < seconds <= MOST_SECONDS else None
