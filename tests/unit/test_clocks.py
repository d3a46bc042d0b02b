"""No decision compares the clocks of two machines: each comparison of times of day stands here with the reason why it is none."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("dtrain", "strategies", "clusters", "trackers", "exporters")
TIMES = {"time", "st_mtime", "expires", "began", "ended", "changed", "started"}
"""Attributes that hold seconds since 1970."""
SHOWN = "a figure to show"
FOLDER_CLOCK = "both times are of the clock of the folder's file system"
ALLOWED = {
    "folder_clock(claim.parent) - claim.stat().st_mtime < SILENT_SECONDS": FOLDER_CLOCK,
    "folder_clock(self.path) - self.started < seconds": FOLDER_CLOCK,
    "path.stat().st_mtime < moment": FOLDER_CLOCK,
    "one.expires > now": FOLDER_CLOCK,
    "state.began > 0": "whether it is known at all",
    "event.time >= at - 0.001": "a drill, its supervisor and its nodes are on one machine; a figure to show",
    "started.time < last.time": "a drill, its supervisor and its nodes are on one machine; a figure to show",
}
LOCAL_AGES = {
    "time.time() - max(moments, default=0.0)": "a worker and its agent are on one machine",
    "now - state.began": SHOWN,
    "now - moment": SHOWN,
    "time.time() - found[0].began": SHOWN,
    "answer.clock - now": "the check of the nodes' clocks, which warns",
    "time.time() - run_lease.renewed(self._store)": "who may only read there can be shown a state and do nothing to the run",
}
"""Differences between the local clock and another time; a comparison of one counts as the difference."""


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


def local_ages(tree: ast.AST) -> Iterator[str]:
    """Differences between the local clock, or a name for what it said in the same function, and something else."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
        clocks = {"time.time()"} | {
            ast.unparse(target)
            for node in assigned
            if ast.unparse(node.value) == "time.time()"
            for target in node.targets
        }
        for node in ast.walk(function):
            sides = [node.left, node.right] if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) else []
            if clocks & set(map(ast.unparse, sides)):
                yield ast.unparse(node)


def found_in_the_code(search: Callable[[ast.AST], Iterator[str]]) -> set[str]:
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {text for path in files for text in search(ast.parse(path.read_text()))}


def test_no_decision_compares_the_clocks_of_two_machines() -> None:
    instead = "compare positions in a log, or ages by one clock (`files.folder_clock`)"
    assert found_in_the_code(comparisons) == ALLOWED.keys(), instead
    assert found_in_the_code(local_ages) == LOCAL_AGES.keys(), instead


def test_a_comparison_of_times_is_seen() -> None:
    assert list(comparisons(ast.parse("time.time() - event.time > 5"))) == ["time.time() - event.time > 5"]
    assert list(comparisons(ast.parse("time.monotonic() > deadline"))) == []


def test_an_age_that_a_function_returns_is_seen() -> None:
    text = "def age(run):\n    now = time.time()\n    return now - run.begin"
    assert list(local_ages(ast.parse(text))) == ["now - run.begin"]
    assert list(local_ages(ast.parse("def age(run):\n    return time.monotonic() - run.begin"))) == []
