"""Nodes with a past as a person reads them, and forgetting one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dtrain.common.errors import UsageError
from dtrain.record import node_history
from dtrain.record.node_history import NodeRecord
from dtrain.show import render


def text(known: Sequence[NodeRecord], now: float) -> str:
    """A line for each node, and below it one for each failure that counts."""
    lines: list[str] = []
    for one in known:
        until = one.avoided_until
        state = f"avoided for {render.seconds(until - now)} more" if until is not None else "used"
        lines.append(f"{one.node} ({one.cluster})  {state}  {render.counted(len(one.failures), 'failure')}")
        lines += [
            f"    {render.seconds(now - failure.time)} ago: {failure.told}: {failure.message.splitlines()[0]}; counts for "
            f"{render.seconds(failure.expires - now)} more"
            for failure in one.failures
        ]
    return "\n".join(lines)


def forget(runs: Path, node: str, now: float) -> str:
    """Have what a node did count no more; raises `UsageError` if it did nothing."""
    known = [one.node for one in node_history.read(runs, now)]
    if node not in known:
        there = f"It has {', '.join(known)}." if known else "It has none."
        raise UsageError(f"no failure began on a node {node!r} of the runs in {runs.absolute()}", there)
    node_history.forget(runs, node, now)
    return f"{node}: forgotten"
