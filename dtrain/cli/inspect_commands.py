"""Commands that look into a running run: stacks, top, profile and debug."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dtrain.cli.options import LAST, RUNS, Json, LastRun, Runs, find
from dtrain.common.errors import Exit, UsageError


def add_to(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (stacks, top, profile, debug):
        app.command()(command)


def stacks(
    name: LastRun = LAST, runs: Runs = RUNS,
    rank: Annotated[list[int] | None, typer.Option(metavar="N", help="Only this rank; may be given several times.")] = None,
    native: Annotated[bool, typer.Option("--native", help="Frames of C and C++, too (by py-spy, where the workers run).")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Every frame, with whole paths.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show what every thread of every rank does now, equal stacks once with their ranks. The run goes on.

    Example: dtrain stacks last --rank 3"""
    from dtrain.inspect import stacks as seen

    run = find(runs, name)
    found = seen.inspected(run, rank or [], stacks=True, native=native)
    print(json.dumps(seen.as_json(found), indent=1) if as_json else seen.text(run, found, whole=whole))


def top(name: LastRun = LAST, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Show step, CPU and memory of each rank, the one furthest behind first; in a terminal again and again.

    Example: dtrain top last"""
    from dtrain.inspect import top as seen

    run = find(runs, name)
    if as_json:
        print(json.dumps(seen.once(run), indent=1))
    else:
        seen.watch(run)


def profile(
    name: LastRun = LAST, runs: Runs = RUNS,
    rank: Annotated[list[int] | None, typer.Option("--rank", metavar="N", min=0, help="Of this rank (0 if none is given); may be given several times.")] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="So many steps, the same ones on every rank.")] = 5,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Profile some steps of a running run: a trace for Perfetto or TensorBoard in the run folder.

    Example: dtrain profile last --rank 0 --rank 3 --steps 5"""
    from dataclasses import asdict

    from dtrain.inspect import profile as seen

    run = find(runs, name)
    found = []
    for event in seen.profiled(run, rank or [0], steps):
        found.append(asdict(event))
        if not as_json:
            print(seen.text(run, event), flush=True)
    if as_json:
        print(json.dumps(found, indent=1))
    if any(event["problem"] for event in found):
        raise typer.Exit(int(Exit.USER_CODE))


def debug(
    name: LastRun = LAST, runs: Runs = RUNS,
    rank: Annotated[int | None, typer.Option("--rank", metavar="N", min=0, help="The rank to debug; without it, one that waits for a debugger or fails, or rank 0.")] = None,
    at_step: Annotated[int | None, typer.Option("--at-step", metavar="N", min=0, help="Stop at this step (counted from 0) or later.")] = None,
    on_exception: Annotated[bool, typer.Option("--on-exception", help="When an exception ends a rank, at the line that raised it.")] = False,
) -> None:  # fmt: skip
    """Open Python's debugger in a rank of a running run: at a step, at breakpoint(), or after an exception. The other ranks
    wait for it, and nothing counts as a hang meanwhile. Leaving it (q, Ctrl-D) lets the run go on.

    Example: dtrain debug last --rank 1 --at-step 200"""
    from dtrain.inspect import debug as terminal
    from dtrain.record.debug_session import DebugRequest

    if at_step is not None and on_exception:
        raise UsageError("--at-step and --on-exception are two ways to stop", "Use one of them.")
    code = terminal.debug(find(runs, name), DebugRequest(rank, at_step, on_exception))
    if code is not Exit.DONE:
        raise typer.Exit(int(code))
