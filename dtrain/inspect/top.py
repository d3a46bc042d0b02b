"""`dtrain top`: what each rank of a run uses, again and again, from two looks a moment apart."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from dtrain.agent import gpu_leases
from dtrain.api.phases import PHASES
from dtrain.common.errors import UsageError
from dtrain.common.printable import raw
from dtrain.common.serde import JsonObject
from dtrain.control.state import state_of
from dtrain.inspect.stacks import inspected
from dtrain.record.folder import RunDir
from dtrain.record.inspection import Inspection
from dtrain.show import render
from dtrain.show.render import columns

EVERY_SECONDS = 1.5
MOST_RANKS = 64
"""Shown in a terminal; those with the fewest steps and the least use of the CPU first."""
HEADS = ("rank", "node", "pid", "step", "CPU", "memory", "GPU", "GPU memory", "a step", *PHASES, "")
"""Columns that nothing is known for are left out."""


def rows(before: Inspection, now: Inspection, *, on_gpus: bool = False) -> list[JsonObject]:
    """Return one row for each rank, the one furthest behind first."""
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
                "gpu": used.gpu if on_gpus else None,
                "gpu_memory_megabytes": used.gpu_memory_megabytes if on_gpus else None, "step_seconds": used.step_seconds,
                "phases": used.phases,
            }
        )  # fmt: skip
    return sorted(found, key=lambda row: (row["step"] or 0, row["cpu"] or 0.0, row["rank"]))


def table(found: Sequence[JsonObject]) -> str:
    """Format the rows."""
    lines = [
        (
            str(row["rank"]), row["node"], str(row["pid"]), _known(row["step"], str), _known(row["cpu"], "{:.0%}".format),
            render.size(row["memory_megabytes"] * 1e6), _known(row["gpu"], "{:.0%}".format),
            _known(row["gpu_memory_megabytes"], lambda value: render.size(value * 1e6)),
            _known(row["step_seconds"], render.milliseconds),
            *(_known(row["phases"].get(phase), render.milliseconds) for phase in PHASES),
            "stopped" if row["stopped"] else "",
        )
        for row in found[:MOST_RANKS]
    ]  # fmt: skip
    always = HEADS.index("GPU")
    shown = [
        number
        for number in range(len(HEADS))
        if number < always or any(line[number] not in ("", "-") for line in lines)
    ]
    more = len(found) - MOST_RANKS
    rest = f"\nand {render.counted(more, 'rank')} more" if more > 0 else ""
    return columns([tuple(line[number] for number in shown) for line in (HEADS, *lines)]) + rest


def _known(value: Any, text: Callable[[Any], str]) -> str:
    return "-" if value is None else text(value)


def once(run: RunDir) -> list[JsonObject]:
    """Two looks a moment apart; raises `UsageError` for a run that only its remote storage reaches."""
    if not run.locked() and run.supervised_elsewhere():
        raise UsageError(
            f"{run.id} is only reached by its remote storage, which does not carry what ranks use",
            "Ask on the machine of its supervisor, or for stacks: dtrain stacks.",
        )
    before = inspected(run, (), stacks=False)
    time.sleep(EVERY_SECONDS)
    return rows(before, inspected(run, (), stacks=False), on_gpus=_on_gpus(run))


def _on_gpus(run: RunDir) -> bool:
    return run.job().resources.device == "gpu"


def watch(run: RunDir) -> None:
    """Show it until the run ends or a Ctrl-C; in a pipe, once."""
    if not sys.stdout.isatty():
        print(_head(run) + "\n" + table(once(run)))
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    before, on_gpus = inspected(run, (), stacks=False), _on_gpus(run)
    with Live(console=Console(file=raw(sys.stdout), highlight=False), auto_refresh=False, transient=False) as live:
        while run.supervised():
            time.sleep(EVERY_SECONDS)
            now = inspected(run, (), stacks=False)
            live.update(
                Text(
                    _head(run)
                    + "\n"
                    + table(rows(before, now, on_gpus=on_gpus))
                    + "\n(Ctrl-C ends this view, not the run)"
                ),
                refresh=True,
            )
            before = now


def _head(run: RunDir) -> str:
    state = state_of(run)
    speed = f", {state.samples_per_second:,.0f} samples/s" if state.samples_per_second else ""
    wait = render.data_wait(state.data_wait).strip()
    step = f", step {state.step} of {state.total_steps}" if state.total_steps else ""
    gpus = gpu_leases.of_runs().get(str(run.path), []) if _on_gpus(run) else []
    has = f", GPU {', '.join(gpus)}" if gpus else ""
    return f"{run.id}: {state.outcome}, attempt {state.attempt}{step}{speed}{has}" + (f", {wait}" if wait else "")
