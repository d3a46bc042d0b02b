"""The command that injects faults into short runs of the user's own job, and checks what dtrain promises: drill."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli.options import RUNS, Cluster, Gpus, Html, Json, Nodes, Runs, Set, Strategy, Workers
from dtrain.common.errors import UsageError

Recipe = Annotated[
    Path | None, typer.Argument(metavar="[RECIPE]", help="Of the job; its own runs and checkpoints are not touched.")
]

WIDE = 300
"""Letters of a line that no terminal shows."""


def add_to(app: typer.Typer) -> None:
    """Make it a command of the command line."""
    app.command()(drill)


def drill(
    path: Recipe = None,
    steps: Annotated[int, typer.Option(metavar="N", min=10, help="Steps of each run.")] = 40,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Begin no further run after this time: 90s, 10m, 2h.")] = "10m",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT,FAULT", help="Only these: kill, kill@23:1 (step, rank), kill@evaluation (phase), kill@23+hang (both in one run); see --list."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the steps and ranks that are left open.")] = 0,
    random: Annotated[str | None, typer.Option(metavar="TIME", help="Instead, faults at random, this far apart on average: 5s, 60s.")] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of --random.")] = 3,
    explain: Annotated[bool, typer.Option("--explain", help="If weights differ: the first step, tensor and (by two more runs) operation that do. Keeps all checkpoints.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints of runs that went well, too.")] = False,
    list_them: Annotated[bool, typer.Option("--list", help="Only list the faults.")] = False,
    gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None, cluster: Cluster = None, sets: Set = None,
    runs: Runs = RUNS, html: Html = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Kill, stop, starve and corrupt short runs of a recipe, one fault a run, and check that what dtrain promises is kept.

    Example: dtrain drill recipe.yaml --only kill,hang,disk-full"""
    from dtrain.cli.report_commands import write_page
    from dtrain.control import overrides
    from dtrain.drill import result as drill_result
    from dtrain.drill import session as drill_session
    from dtrain.drill import views

    if list_them:
        print(json.dumps(drill_session.listed_as_json(), indent=1) if as_json else drill_session.listed())
        return
    if path is None:
        raise UsageError("drill needs a recipe", "Name one: dtrain drill recipe.yaml; --list shows the faults.")
    given = overrides.of_options(gpus=gpus, workers=workers, nodes=nodes, strategy=strategy, cluster=cluster, sets=sets)
    asked = drill_session.Asked(
        path, steps, budget, tuple(only or ()), seed, random, rounds, explain, keep or explain, html
    )
    session = drill_session.Session(asked, given, runs, quiet=as_json)
    result = session.run()
    if as_json:
        print(json.dumps(drill_result.as_json(result), indent=1))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
        print(views.text(result, session.options, width=width, colored=sys.stdout.isatty()))
    if html:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            write_page(html, views.html(result, session.options))
    raise typer.Exit(session.exit_code(result))
