"""The result of a drill: the undisturbed run, a row for each fault, and whether every promise was kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from dtrain.common.lazy_dataclass import dataclass
from dtrain.drill.cases import Case


@dataclass(frozen=True)
class Row:
    """One run of a drill."""

    case: Case
    run: str = ""
    """Folder of the run."""
    struck: bool = True
    """Whether its faults happened."""
    problem: str = ""
    """Why they did not: nothing is known of it then."""
    detected_seconds: float | None = None
    """Seconds from the (last) fault to the first event that shows it."""
    classes: tuple[str, ...] = ()
    """Classes of the failures, in order."""
    next_step_seconds: float | None = None
    """Seconds from the last fault to the first step of the next attempt."""
    steps_lost: int | None = None
    """Done again."""
    seconds_lost: float | None = None
    """Steps that were done again, detection and restart."""
    restarts_charged: int = 0
    """Restarts charged to `recovery.restarts`."""
    exit_code: int | None = None
    end: str = ""
    """End state beside that of the undisturbed run."""
    broken: tuple[str, ...] = ()
    """Promises that it broke, in words."""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """Return the verdict in a word or two."""
        if self.case.not_applicable:
            return "not applicable"
        if self.broken:
            return "BROKEN"
        return "kept" if self.struck and not self.problem else "not drilled"


@dataclass(frozen=True)
class DrillResult:
    """Everything that a drill found."""

    recipe: str
    job: str
    """The job in one line."""
    seed: int
    steps: int
    undisturbed: Row
    rows: tuple[Row, ...]
    folder: str
    """Of the runs."""
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @cached_property
    def drilled(self) -> Sequence[Row]:
        """Rows of faults that happened."""
        return [row for row in self.rows if row.verdict in ("kept", "BROKEN")]

    @cached_property
    def broken(self) -> Sequence[Row]:
        """Runs that broke a promise, the undisturbed one included."""
        return [row for row in (self.undisturbed, *self.rows) if row.broken]


def as_json(result: DrillResult) -> dict[str, Any]:
    """Convert to plain data."""
    return {
        "recipe": result.recipe, "job": result.job, "seed": result.seed, "steps": result.steps, "folder": result.folder,
        "kept": not result.broken, "interrupted": result.interrupted, "notes": list(result.notes),
        "undisturbed": _row(result.undisturbed), "faults": [_row(row) for row in result.rows],
    }  # fmt: skip


def _row(row: Row) -> dict[str, Any]:
    fields = asdict(row)
    case = fields.pop("case")
    return {
        "fault": case["name"], "schedule": row.case.text, "not_applicable": case["not_applicable"],
        "verdict": row.verdict, **fields,
    }  # fmt: skip
