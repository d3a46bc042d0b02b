"""No decision compares the clocks of two machines: each comparison of times of day stands here with the reason why it is none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("dtrain", "strategies", "clusters", "trackers", "exporters")
TIMES = {"time", "st_mtime", "expires", "began", "ended", "changed"}
"""Attributes that hold seconds since 1970."""
FOLDER_CLOCK = "both times are of the clock of the folder's file system"
ALLOWED = {
    "folder_clock(claim.parent) - claim.stat().st_mtime < SILENT_SECONDS": FOLDER_CLOCK,
    "path.stat().st_mtime < moment": FOLDER_CLOCK,
    "one.expires > now": FOLDER_CLOCK,
    "state.began > 0": "whether it is known at all",
    "event.time >= at - 0.001": "a drill, its supervisor and its nodes are on one machine; a figure to show",
    "started.time < last.time": "a drill, its supervisor and its nodes are on one machine; a figure to show",
}


def is_time_of_day(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) == "time.time"
    return isinstance(node, ast.Attribute) and node.attr in TIMES and ast.unparse(node) != "time.time"


def comparisons(tree: ast.AST) -> Iterator[str]:
    """Of times of day, or of what is computed from them, by size."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE):
            sides = [node.left, *node.comparators]
            if any(is_time_of_day(part) for side in sides for part in ast.walk(side)):
                yield ast.unparse(node)


def test_no_decision_compares_the_clocks_of_two_machines() -> None:
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    found = {text: path for path in files for text in comparisons(ast.parse(path.read_text()))}
    assert found.keys() == ALLOWED.keys(), "compare positions in a log, or ages by one clock (`files.folder_clock`)"


def test_a_comparison_of_times_is_seen() -> None:
    assert list(comparisons(ast.parse("time.time() - event.time > 5"))) == ["time.time() - event.time > 5"]
    assert list(comparisons(ast.parse("time.monotonic() > deadline"))) == []
