"""Trackers: where a run's curves are drawn. The supervisor gives each of them the entries of the run, in a process of its own.

A tracker may raise, hang or die: the run neither waits for it nor ends with it. It is started anew, and gets what it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject
from dtrain.record.tracker_entries import Ending, Entry

__all__ = ["Ending", "Entry", "TrackedRun", "Tracker"]


@dataclass(frozen=True)
class TrackedRun:
    """The run as its trackers know it."""

    id: str
    """The same for its whole life: after failures, requeues and resumes, too."""
    name: str
    """The recipe's; many runs may have it."""
    folder: Path
    """A folder in the run folder for this tracker alone; it is there. On another machine it may be empty again."""
    config: JsonObject
    """The job, as plain data: parameters, strategy, resources, the numbers of the training."""


class Tracker(Protocol):
    """A place where curves are drawn. It is made with its options; what it needs is imported in `open`, not with its module."""

    Options: ClassVar[type]
    """Frozen dataclass of this tracker's own options, checked by the recipe loader."""

    def open(self, run: TrackedRun) -> int | None:
        """Begin to log this run, or go on where an earlier tracker of the same run stopped, which may have been killed.
        Returns how many entries it holds already; None if it cannot tell: then the run folder's own count is used, and
        entries that were logged just before a kill may come again."""

    def log(self, entries: Sequence[Entry]) -> None:
        """Log the next entries, in order; may wait. When it returns they are kept, as far as this tracker can do that."""

    def close(self, ending: Ending | None) -> None:
        """Finish: all entries were logged. `ending` says how the run ended; None if it goes on, or is not known to have ended."""
