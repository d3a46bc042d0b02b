"""The command line: each command reads its arguments, calls one function, and prints the result."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli import (
    bench_commands,
    completion,
    doctor_commands,
    drill_commands,
    export_commands,
    inspect_commands,
    node_commands,
    recipe_commands,
    report_commands,
    tracker_commands,
)
from dtrain.cli.options import RUNS, Cluster, Code, Gpus, Json, Name, Nodes, RunName, Runs, Set, Strategy, Workers
from dtrain.cli.options import find as _find
from dtrain.common import environment
from dtrain.common.errors import DtrainError, Exit, UsageError
from dtrain.common.printable import PrintableStream
from dtrain.common.processes import discard_stdout

app = typer.Typer(
    name="dtrain",
    help="One YAML recipe that trains on this machine, on Ray and on SLURM, and survives what goes wrong there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see recipes/.")]
Warm = Annotated[
    str | None,
    typer.Option(
        envvar=environment.WARM, metavar="TIME", callback=lambda value: _keep_warm(value),
        help="Keep what was imported this long for the next run, as 10m or 2h; see 'dtrain warm'.",
    ),
]  # fmt: skip


def _keep_warm(text: str | None) -> str | None:
    """Put the time into the environment, where the process that starts the agents finds it."""
    if text:
        from dtrain.common import durations

        if durations.seconds_of(text) is None:
            raise UsageError(f"--warm {text}: not a time", "Write it like 30s, 10m or 2h.")
        from dtrain.agent.warm import pool

        if problem := pool.problem():
            print(f"dtrain: {problem}", file=sys.stderr)
        os.environ[environment.WARM] = text
    return text


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dtrain {version('dtrain')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=lambda value: _print_version(wanted=value), help="Print it."),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    path: Recipe, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, name: Name = None, sets: Set = None, runs: Runs = RUNS, warm: Warm = None,
) -> None:  # fmt: skip
    """Train a recipe, and watch it. Ctrl-C saves and stops; twice stops at once.

    Example: dtrain run recipe.yaml --workers 2 --set train.steps=500"""
    from dtrain.cli import terminal
    from dtrain.control import create, overrides

    given = overrides.of_options(
        gpus=gpus, workers=workers, nodes=nodes, strategy=strategy, cluster=cluster, name=name, sets=sets
    )
    raise typer.Exit(terminal.run_here(create.new_run(path, runs, given), resumed=False))


@app.command()
def resume(
    name: RunName, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, sets: Set = None, runs: Runs = RUNS,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="Take the settings of this recipe instead of the run's own.")] = None,
    code: Annotated[Code, typer.Option(help="Train with the code that the run began with, or with the code as it is now.")] = Code.SAME,
    detach: Annotated[bool, typer.Option("--detach", help="Do not watch it.")] = False,
    warm: Warm = None,
) -> None:  # fmt: skip
    """Go on with a run from its newest valid checkpoint, also with another number of workers.

    Example: dtrain resume last --workers 4"""
    from dtrain.cli import terminal
    from dtrain.control import create, overrides

    chosen = _find(runs, name)
    given = overrides.of_options(gpus=gpus, workers=workers, nodes=nodes, sets=sets)
    if edits := create.prepare_resume(chosen, given, recipe, new_code=code is Code.NEW):
        print(edits, flush=True)
    if detach:
        terminal.submit(chosen)
    else:
        raise typer.Exit(terminal.run_here(chosen, resumed=chosen.events.exists()))


@app.command()
def submit(
    path: Recipe, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, name: Name = None, sets: Set = None, runs: Runs = RUNS,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,C", help="A run for each of these values; given twice: for each pair.")
    ] = None,
    at_most: Annotated[int | None, typer.Option(metavar="N", min=1, help="Runs of a sweep at once; waits for all of them, then prints a table.")] = None,
) -> None:  # fmt: skip
    """Start a recipe detached from this terminal.

    Example: dtrain submit recipe.yaml --sweep train.seed=0,1,2 --at-most 1"""
    from dtrain.cli import terminal
    from dtrain.control import create, overrides

    given = overrides.of_options(
        gpus=gpus, workers=workers, nodes=nodes, strategy=strategy, cluster=cluster, name=name, sets=sets
    )
    members = create.new_sweep(path, runs, given, sweep or [])
    if at_most is None:
        for member in members:
            terminal.submit(member())
    else:
        raise typer.Exit(terminal.run_queue(members, at_most))


@app.command()
def attach(name: RunName, runs: Runs = RUNS) -> None:
    """Watch a run that was submitted, or started elsewhere. Ctrl-C asks whether to detach or to stop it.

    Example: dtrain attach last"""
    from dtrain.cli import terminal

    raise typer.Exit(terminal.attach(_find(runs, name)))


@app.command()
def ps(
    runs: Runs = RUNS, as_json: Json = False,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the N runs that were started last; with --sort, the first N.")] = None,
    sort: Annotated[str | None, typer.Option(metavar="KEY", help="A column or a metric, the best first: accuracy, loss, step, started …")] = None,
    state: Annotated[list[str] | None, typer.Option(metavar="STATE", help="Only these: done, failed, running …; may be given several times.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Only ids that begin with it, or fit it as a pattern: 'digits-*'.")] = None,
) -> None:  # fmt: skip
    """List the runs, the one that was started last at the end.

    Example: dtrain ps --state done --sort accuracy --limit 10"""
    from dtrain.agent import gpu_leases
    from dtrain.cli import summary
    from dtrain.control import select as run_list
    from dtrain.control import state as queries
    from dtrain.record import folder

    chosen = [run for run in folder.all_runs(runs) if run_list.is_named(run.id, name)]
    held = gpu_leases.of_runs()
    last = 0 if sort or state else -(limit or 0)
    rows = run_list.with_state([queries.row(run, held.get(str(run.path), ())) for run in chosen[last:]], state or [])
    rows = run_list.in_order(rows, sort)[:limit] if sort else rows[-(limit or 0) :]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif rows:
        print(summary.table(rows, run_list.metric_column(rows, sort)))
    elif name or state:
        print(f"no such runs in {runs.absolute()}")
    else:
        print(f"no runs in {runs.absolute()} (another folder: --runs or DTRAIN_RUNS)")


@app.command()
def status(name: RunName, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Say how a run is doing, or how it went.

    Example: dtrain status last"""
    from dtrain.cli import summary
    from dtrain.control import state as queries

    chosen = _find(runs, name)
    state = queries.state_of(chosen)
    if as_json:
        print(json.dumps(state.public() | {"folder": str(chosen.path)}, indent=1))
    else:
        print(summary.status(state, chosen))


@app.command()
def logs(
    name: RunName, runs: Runs = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends, with what happens to it in between.")] = False,
    rank: Annotated[list[int] | None, typer.Option(metavar="N", help="Only this rank; may be given several times.")] = None,
    attempt: Annotated[int | None, typer.Option(metavar="N", help="Only what was written in this attempt.")] = None,
    grep: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only lines in which this regular expression is found.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only what was written since: 10m (ago), 03:00, '2026-11-24 03:00'; to within 5 s.")] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Lines that several ranks wrote once, with their ranks.")] = False,
) -> None:  # fmt: skip
    """Print the workers' output.

    Example: dtrain logs last --attempt 2 --grep 'loss|nan'"""
    from dtrain.cli import logs as printed

    printed.print_logs(_find(runs, name), printed.chosen(rank or [], attempt, grep, since, fold=fold), follow=follow)


@app.command()
def stop(
    name: RunName, runs: Runs = RUNS,
    now: Annotated[bool, typer.Option("--now", help="Do not save first.")] = False,
    wait: Annotated[bool, typer.Option(help="Until the run has ended.")] = True,
) -> None:  # fmt: skip
    """Save and stop a run, wherever it was started; 'dtrain resume' goes on.

    Example: dtrain stop last"""
    from dtrain.cli import summary
    from dtrain.control.stop import stop as stop_run

    chosen = _find(runs, name)
    stopped = stop_run(chosen, now=now, wait=wait)
    print(summary.summary(stopped.ended, chosen) if stopped.ended else stopped.text)


@app.command()
def plan(
    path: Recipe, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, name: Name = None, sets: Set = None, runs: Runs = RUNS, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what would run where, with which environment; nothing is started.

    Example: dtrain plan recipe.yaml --cluster slurm"""
    from dtrain.cli import plan_view
    from dtrain.control import overrides
    from dtrain.launch import planner, recipe

    given = overrides.of_options(
        gpus=gpus, workers=workers, nodes=nodes, strategy=strategy, cluster=cluster, name=name, sets=sets
    )
    shown = plan_view.plan_view(planner.make(recipe.load(path, given, here=False, runs=runs)), runs)
    print(json.dumps(asdict(shown), indent=1) if as_json else plan_view.plan_text(shown))


@app.command()
def warm(
    end: Annotated[bool, typer.Option("--end", help="End them.")] = False, as_json: Json = False,
) -> None:  # fmt: skip
    """List the processes of this machine that keep what they have imported for the next run (dtrain run --warm), or end them.

    Example: dtrain run recipe.yaml --warm 10m; dtrain warm; dtrain warm --end"""
    from dtrain.agent.warm import pool
    from dtrain.show import render

    if end:
        print(f"ended: {render.counted(pool.end_all(), 'warm process')}")
        return
    found = pool.residents()
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
    for one in [] if as_json else found:
        imported = ", ".join(one.preload) or "nothing"
        left, runs = render.seconds(one.seconds_left), render.counted(one.runs, "run")
        print(f"{one.pid}  {left} left  {one.megabytes:.0f} MB  {runs}  imported: {imported}")
    if not found and not as_json:
        print("nothing is kept warm (dtrain run recipe.yaml --warm 10m keeps what it imports)")


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the strategies, clusters and trackers that are installed, and what each needs.

    Example: dtrain plugins"""
    from dtrain.inspect.plugins import plugin_rows, plugin_text

    rows = plugin_rows()
    print(json.dumps([asdict(row) for row in rows], indent=1) if as_json else plugin_text(rows))


for commands in (
    recipe_commands, bench_commands, drill_commands, report_commands, export_commands, inspect_commands, tracker_commands, node_commands, doctor_commands, completion,
):  # fmt: skip
    commands.add_to(app)


def main() -> int:
    """Run the command line; the process's exit code."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # Not all terminals know all letters, and none is to obey what user code has said.
            setattr(
                sys,
                name,
                PrintableStream(stream.buffer, stream.encoding, "backslashreplace", line_buffering=stream.isatty()),
            )
    completion.prepare()
    try:
        code = app(standalone_mode=False, complete_var=completion.VARIABLE)
        return code if isinstance(code, int) else int(Exit.DONE)
    except DtrainError as error:
        print(f"dtrain: {error}" if "\n" not in error.message else str(error), file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        discard_stdout()
        return int(Exit.DONE)
    except typer.Abort:
        return int(Exit.INTERRUPTED)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"dtrain: the file system says: {error.strerror or error}:{where}", file=sys.stderr)
        return int(Exit.GAVE_UP)
    except Exception as error:  # noqa: BLE001  it is reported, and its traceback is in a file
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        return _report_internal_error(error)


def _report_internal_error(error: Exception) -> int:
    """A fault of dtrain itself: its first line here, its traceback in a file."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="dtrain-error-", suffix=".log", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    print(f"dtrain: {type(error).__name__}: {error}\n  This is a fault of dtrain: see {file.name}", file=sys.stderr)
    return int(Exit.INTERNAL)
