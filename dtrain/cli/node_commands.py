"""The command about nodes with a past: nodes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from dtrain.cli.options import RUNS, Json, Runs


def add_to(app: typer.Typer) -> None:
    """Make it a command of the command line."""
    app.command()(nodes)


def nodes(
    runs: Runs = RUNS,
    forget: Annotated[str | None, typer.Option(metavar="NODE", help="What it did counts no more: it was repaired, or it was not its fault.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List the nodes that failures of the runs in a folder began on, and until when they are avoided.

    Example: dtrain nodes; dtrain nodes --forget node07"""
    from dtrain.cli import node_list
    from dtrain.record import node_history

    now = node_history.clock(runs)
    if forget is not None:
        print(node_list.forget(runs, forget, now))
        return
    known = node_history.read(runs, now)
    if as_json:
        rows = [asdict(one) | {"avoided": one.avoided_until is not None, "until": one.avoided_until} for one in known]
        print(json.dumps(rows, indent=1))
    else:
        print(node_list.text(known, now) or f"no failure began on a node of the runs in {runs.absolute()}")
