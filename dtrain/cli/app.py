"""The command line: each command reads its arguments, calls one function, and prints the result."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from dtrain.cli import (
    bench_commands,
    completion,
    doctor_commands,
    drill_commands,
    export_commands,
    inspect_commands,
    login_commands,
    node_commands,
    recipe_commands,
    report_commands,
    run_commands,
    tracker_commands,
    tune_commands,
    watch_commands,
)
from dtrain.cli.group import Commands
from dtrain.cli.options import Json
from dtrain.common import environment
from dtrain.common.errors import DtrainError, Exit
from dtrain.common.printable import PrintableStream
from dtrain.common.processes import discard_stdout

app = typer.Typer(
    name="dtrain",
    cls=Commands,
    help="One YAML recipe that trains on this machine, on Ray and on SLURM, and survives what goes wrong there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    host: Annotated[
        str,
        typer.Option(
            metavar="MACHINE", envvar=environment.HOST,
            help="Type the command on this machine, over SSH; stands anywhere on the line.",
        ),
    ] = "",
    bootstrap: Annotated[bool, typer.Option("--bootstrap", help="With --host: put dtrain there first.")] = False,
) -> None:  # fmt: skip
    pass


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


def plugins(as_json: Json = False) -> None:
    """List the strategies, clusters and trackers that are installed, and what each needs.

    Example: dtrain plugins"""
    from dtrain.inspect.plugins import plugin_rows, plugin_text

    rows = plugin_rows()
    print(json.dumps([asdict(row) for row in rows], indent=1) if as_json else plugin_text(rows))


for first in (run_commands, tune_commands, watch_commands):
    first.add_to(app)
for command in (warm, plugins):
    app.command()(command)
for commands in (
    recipe_commands, bench_commands, drill_commands, report_commands, export_commands, inspect_commands, tracker_commands, node_commands,
    doctor_commands, login_commands, completion,
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
        code = _elsewhere()
        if code is None:
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
            if getattr(error, "option_name", "") and any(word.endswith(".py") for word in sys.argv[1:]):
                print("What is for the script stands behind '--': dtrain run train.py -- --lr 0.1", file=sys.stderr)
            return int(error.exit_code)
        return _report_internal_error(error)


def _elsewhere() -> int | None:
    """Type the command on another machine, if one is named; returns its exit code, or None."""
    names = ("--host", "--profile", "--bootstrap")
    if (
        not any(word.startswith(names) for word in sys.argv)
        and not {environment.HOST, environment.PROFILE} & os.environ.keys()
    ):
        return None
    from dtrain.login import forward

    return forward.run(sys.argv[1:])


def _report_internal_error(error: Exception) -> int:
    """A fault of dtrain itself: its first line here, its traceback in a file."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="dtrain-error-", suffix=".log", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    print(f"dtrain: {type(error).__name__}: {error}\n  This is a fault of dtrain: see {file.name}", file=sys.stderr)
    return int(Exit.INTERNAL)
