"""Amounts of memory as a person writes them."""

from __future__ import annotations

MEMORY_UNITS = {"MB": 10**6, "GB": 10**9}


def memory_bytes(text: str) -> int | None:
    """Return the bytes of `2GB` or `500 MB`; None if that is no amount of memory."""
    number, unit = text.strip()[:-2].strip(), text.strip()[-2:].upper()
    try:
        found = float(number) * MEMORY_UNITS[unit]
    except (ValueError, KeyError):
        return None
    return int(found) if 0 < found < 10**15 else None
