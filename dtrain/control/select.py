"""Chooses and sorts the runs that `dtrain ps` lists. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatch

from dtrain.common.errors import UsageError, nearest
from dtrain.control.state import RunRow
from dtrain.record.metric_curves import HELD_OUT, lower_is_better

ASCENDING = ("run", "state", "strategy", "cluster")
DESCENDING = ("step", "workers", "restarts", "started", "changed")


def is_named(run_id: str, name: str | None) -> bool:
    """Whether an id begins with a name, or fits it as a pattern."""
    return not name or run_id.startswith(name) or fnmatch(run_id, name)


def with_state(rows: Sequence[RunRow], states: Sequence[str]) -> list[RunRow]:
    """The runs in one of these states; all of them if there are none given."""
    return [row for row in rows if not states or row.state in states]


def with_tags(rows: Sequence[RunRow], tags: Sequence[str]) -> list[RunRow]:
    """Choose the runs that have all of these tags, each a key or `key=value`."""
    pairs = [tag.partition("=") for tag in tags]
    return [
        row for row in rows
        if all(key in row.tags and (not sign or row.tags[key] == value) for key, sign, value in pairs)
    ]  # fmt: skip


def metric_column(rows: Sequence[RunRow], key: str | None) -> str | None:
    """The metric that the runs are sorted by, if it has no column of its own."""
    if not rows or key is None or key in ASCENDING or key in DESCENDING:
        return None
    name = metric_name(rows, key)
    return None if name == "loss" else name


def metric_name(rows: Sequence[RunRow], key: str) -> str:
    """The metric that a key means, held-out numbers first; raises `UsageError` if no run has it."""
    known = list(dict.fromkeys(name for row in rows for name in row.metrics))
    found = next((name for name in (f"{HELD_OUT}{key}", key) if name in known), None)
    if found is None:
        raise UsageError(
            f"--sort {key}: no column and no metric of these runs", nearest(key, [*ASCENDING, *DESCENDING, *known])
        )
    return found


def in_order(rows: Sequence[RunRow], key: str) -> list[RunRow]:
    """Sort by a column or a metric, the best first; runs without it come last."""
    if key in ASCENDING:
        return sorted(rows, key=lambda row: str(getattr(row, key)))
    if key in DESCENDING:
        return sorted(rows, key=lambda row: getattr(row, key) or 0, reverse=True)
    name = metric_name(rows, key)
    sign = 1.0 if lower_is_better(name) else -1.0

    def place(row: RunRow) -> float:
        value = row.metrics.get(name, math.nan)
        return sign * value if math.isfinite(value) else math.inf

    return sorted(rows, key=place)
