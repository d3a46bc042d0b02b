"""What the board answers to its page, as plain data. Nothing that may hold a secret is in it: recipes and jobs as in reports."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dtrain.board.runs import Board, SeenRun
from dtrain.common.errors import UsageError
from dtrain.common.printable import printable
from dtrain.common.secrets import recipe_without_secrets
from dtrain.common.serde import JsonObject
from dtrain.record import log_retention
from dtrain.record.metric_curves import Curve, lower_is_better
from dtrain.report import comparison
from dtrain.show import render
from dtrain.study.folder import all_studies

MOST_POINTS = 1200
"""Of a curve."""
MOST_FAILURES = 50
MOST_LINES = 500
END_BYTES = 1 << 18
"""Of a log, if nothing is looked for in it."""
SEARCHED_BYTES = 1 << 28
"""Of a log that is searched, its newest part."""
MOST_COMPARED = 20


def plain(value: Any) -> Any:
    """The same data with numbers that JSON does not know as texts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def runs(board: Board, since: int) -> JsonObject:
    """The rows that changed since a version of the board, the ids of all runs, and the studies."""
    version, ids, rows = board.changes(since)
    studies = [{"study": one.id, "state": one.state} for one in reversed(all_studies(board.root))]
    return {"version": version, "ids": ids, "rows": [asdict(row) for row in rows], "studies": studies}


def run(board: Board, run_id: str) -> JsonObject:
    """One run: its row, its failures, its best values and its recipe."""
    seen = board.seen(run_id)
    state = seen.state
    recipe = seen.run.recipe_copy
    return {
        "row": asdict(seen.row),
        "whole": seen.whole,
        "live": seen.whole and state.exit_code is None and state.phase != "lost",
        "folder": str(seen.run.path),
        "target": state.target,
        "attempt": state.attempt,
        "saved_step": state.saved_step,
        "samples_per_second": state.samples_per_second,
        "failures": [
            {"time": one.time, "attempt": one.attempt, "text": render.failure(one), "evidence": render.evidence(one)}
            for one in reversed(state.failures[-MOST_FAILURES:])
        ],
        "warnings": state.warnings,
        "best": [_numbers(name, curve) for name, curve in list(seen.curves.metrics.items()) if len(curve)],
        "recipe": recipe_without_secrets(recipe.read_text(errors="replace")) if recipe.exists() else "",
        "ranks": sorted(seen.run.rank_logs()),
    }


def _numbers(name: str, curve: Curve) -> JsonObject:
    """The last and the best value of a metric."""
    best = curve.best("min" if lower_is_better(name) else "max")
    return {"name": name, "last": curve.last, "best": best and best[1], "step": best and best[0]}


def curves(board: Board, ids: Sequence[str]) -> JsonObject:
    """The curves of some runs by step, with the steps that attempts began anew at."""
    return {run_id: _curves(board.seen(run_id)) for run_id in _few(ids)}


def _curves(seen: SeenRun) -> JsonObject:
    with seen.lock:
        found = seen.curves
        by_step = {name: _points(curve) for name, curve in (found.metrics | found.optimizer).items()}
        speed = {"samples/s": _points(found.speed), "data wait": _points(found.data_wait)}
        restarts = list(found.restarts)
    return {"steps": by_step, "times": speed, "restarts": restarts[-MOST_POINTS:], "whole": seen.whole}


def _points(curve: Curve) -> list[list[float]]:
    points = curve.thinned(MOST_POINTS)
    return [[at for at, _ in points], [value for _, value in points]]


def compare(board: Board, ids: Sequence[str]) -> JsonObject:
    """Runs beside each other: short names, what differs in their recipes, and their numbers."""
    seen = [board.seen(run_id) for run_id in _few(ids)]
    numbers = [
        [_numbers(name, curve) for name, curve in list(one.curves.metrics.items()) if len(curve)] for one in seen
    ]
    return {
        "names": comparison.short_names([one.run.id for one in seen])
        if len(seen) > 1
        else [one.run.id for one in seen],
        "differences": comparison.differences([one.run.job() for one in seen]),
        "rows": [asdict(one.row) for one in seen],
        "numbers": numbers,
        "lower": {one["name"]: lower_is_better(one["name"]) for row in numbers for one in row},
    }


def _few(ids: Sequence[str]) -> Sequence[str]:
    if not 1 <= len(ids) <= MOST_COMPARED:
        raise UsageError(f"{len(ids)} runs beside each other", f"Choose one to {MOST_COMPARED}.")
    return ids


def logs(board: Board, run_id: str, rank: int | None, text: str) -> JsonObject:
    """The newest lines of a rank's output, or of every rank's; with a text, those that have it in them."""
    there = board.seen(run_id).run.rank_logs()
    chosen = there if rank is None else {rank: there[rank]} if rank in there else {}
    most = (SEARCHED_BYTES if text else END_BYTES) // max(1, len(chosen))
    lines = deque[tuple[int, str]](maxlen=MOST_LINES)
    for number, path in chosen.items():
        newest = deque((line for line in _lines(path, most) if text.lower() in line.lower()), MOST_LINES)
        lines.extend((number, line) for line in newest)
    return {"lines": list(lines), "most": MOST_LINES}


def _lines(path: Path, most: int) -> Iterator[str]:
    """The lines in the newest bytes of a log; of a progress bar, what it showed last."""
    size = path.stat().st_size
    offset, rest = max(0, size - most), b""
    cut = offset > 0
    while True:
        piece = log_retention.read(path, offset)
        offset += piece.removed + len(piece.data)
        *whole, rest = (rest + piece.data).split(b"\n")
        for line in [*whole, rest] if piece.last else whole:
            if not cut and (line or line is not rest):
                yield printable(line.decode(errors="replace").rstrip("\r").rpartition("\r")[2])
            cut = False
        if piece.last:
            return
