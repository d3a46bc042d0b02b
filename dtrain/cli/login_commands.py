"""The command that brings a run from another machine: pull."""

from __future__ import annotations

from typing import Annotated

import typer

from dtrain.cli.options import LAST, RUNS, LastRun, Runs


def add_to(app: typer.Typer) -> None:
    """Make it a command of the command line."""
    app.command()(pull)


def pull(
    name: LastRun = LAST, runs: Runs = RUNS,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Bring its checkpoints, too.")] = False,
) -> None:  # fmt: skip
    """Bring a run from another machine here: what happened, its logs and curves.

    Example: dtrain pull last --host login.cluster"""
    from dtrain.login import forward

    print(forward.pull(name, runs, checkpoints=checkpoints))
