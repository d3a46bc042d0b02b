"""`dtrain top`: what each rank of a run uses, again and again, from two looks a moment apart."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from dtrain.cli import render
from dtrain.cli.queries import state_of
from dtrain.cli.stacks import inspected
from dtrain.cli.summary import columns
from dtrain.common.errors import UsageError
from dtrain.common.serde import JsonObject
from dtrain.run.folder import RunDir
from dtrain.run.inspection import Inspection

EVERY_SECONDS = 1.5
MOST_RANKS = 64
"""Shown in a terminal; those with the fewest steps and the least use of the CPU first."""
HEADS = ("rank", "node", "pid", "step", "CPU", "memory", "")


def rows(before: Inspection, now: Inspection) -> list[JsonObject]:
    """One row for each rank, the one furthest behind first."""
    elapsed = max(1e-3, now.time - before.time)
    found = []
    for rank, used in now.usage.items():
        earlier = before.usage.get(rank)
        same = earlier is not None and earlier.pid == used.pid
        share = (used.cpu_seconds - earlier.cpu_seconds) / elapsed if same and earlier else None
        found.append(
            {
                "rank": int(rank), "node": used.node, "pid": used.pid, "step": used.step, "stopped": used.stopped,
                "cpu": None if share is None else round(max(0.0, share), 3), "memory_megabytes": used.memory_megabytes,
            }
        )  # fmt: skip
    return sorted(found, key=lambda row: (row["step"] or 0, row["cpu"] or 0.0, row["rank"]))


def table(found: Sequence[JsonObject]) -> str:
    """The rows as text."""
    lines = [HEADS]
    for row in found[:MOST_RANKS]:
        cpu = "-" if row["cpu"] is None else f"{row['cpu']:.0%}"
        step = "-" if row["step"] is None else str(row["step"])
        memory = render.size(row["memory_megabytes"] * 1e6)
        lines.append(
            (str(row["rank"]), row["node"], str(row["pid"]), step, cpu, memory, "stopped" if row["stopped"] else "")
        )
    more = len(found) - MOST_RANKS
    return columns(lines) + (f"\nand {render.counted(more, 'rank')} more" if more > 0 else "")


def once(run: RunDir) -> list[JsonObject]:
    """Two looks a moment apart; raises `UsageError` for a run that only its remote storage reaches."""
    if not run.locked() and run.supervised_elsewhere():
        raise UsageError(
            f"{run.id} is only reached by its remote storage, which does not carry what ranks use",
            "Ask on the machine of its supervisor, or for stacks: dtrain stacks.",
        )
    before = inspected(run, (), stacks=False)
    time.sleep(EVERY_SECONDS)
    return rows(before, inspected(run, (), stacks=False))


def watch(run: RunDir) -> None:
    """Show it until the run ends or a Ctrl-C; in a pipe, once."""
    if not sys.stdout.isatty():
        print(_head(run) + "\n" + table(once(run)))
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    before = inspected(run, (), stacks=False)
    with Live(console=Console(highlight=False), auto_refresh=False, transient=False) as live:
        while run.supervised():
            time.sleep(EVERY_SECONDS)
            now = inspected(run, (), stacks=False)
            live.update(
                Text(_head(run) + "\n" + table(rows(before, now)) + "\n(Ctrl-C ends this view, not the run)"),
                refresh=True,
            )
            before = now


def _head(run: RunDir) -> str:
    state = state_of(run)
    speed = f", {state.samples_per_second:,.0f} samples/s" if state.samples_per_second else ""
    wait = render.data_wait(state.data_wait).strip()
    step = f", step {state.step} of {state.total_steps}" if state.total_steps else ""
    return f"{run.id}: {state.outcome}, attempt {state.attempt}{step}{speed}" + (f", {wait}" if wait else "")
