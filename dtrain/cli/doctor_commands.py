"""The command that checks a machine or the nodes of a cluster: doctor."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli import screen
from dtrain.cli.options import RUNS, Json, Profile, Runs
from dtrain.common.errors import Exit


def add_to(app: typer.Typer) -> None:
    """Make it a command of the command line."""
    app.command()(doctor)


def doctor(
    path: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="Check the cluster, nodes and devices of this recipe; without it, this machine.")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="Check the nodes of this cluster.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of nodes to check.")] = None,
    profile: Profile = None, runs: Runs = RUNS, as_json: Json = False,
) -> None:  # fmt: skip
    """Check this machine, or every node of a cluster: versions, devices, memory, limits, folder, clock, network.

    Example: dtrain doctor recipe.yaml --cluster slurm"""
    from dtrain.inspect import doctor as checked

    lines = list(checked.examined(path, cluster, nodes, runs))
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        for line in lines:
            first, *todo = checked.told(line).split("\n")
            print("\n".join([screen.folded(first, 24), *(screen.folded(text, 11) for text in todo)]))
    raise typer.Exit(int(Exit.GAVE_UP if any(line.state == "problem" for line in lines) else Exit.DONE))
