"""Options of exporters that have none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""
