"""The commands about trackers: `dtrain track` gives them what they lack, `dtrain tensorboard` shows curves in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from dtrain.cli.options import RUNS, RunName, Runs, find
from dtrain.common.errors import Exit, UsageError


def add_to(app: typer.Typer) -> None:
    """Register the commands."""

    @app.command()
    def track(
        name: RunName,
        runs: Runs = RUNS,
    ) -> None:
        """Give the trackers of a run what they lack, if one of them was down when it ended.

        Example: dtrain track last"""
        from dtrain.supervisor.beside import tracking

        found = tracking.catch_up(find(runs, name))
        if not found:
            raise UsageError("this run has no trackers", "Its recipe says track: [], or what the default one needs is not installed.")  # fmt: skip
        for tracker, problem in found.items():
            print(f"{tracker}: {problem or 'everything is logged'}")
        raise typer.Exit(int(Exit.GAVE_UP if any(found.values()) else Exit.DONE))

    @app.command()
    def tensorboard(
        names: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Ids, prefixes, paths, URLs or 'last'; all runs if none is given.")] = None,
        runs: Runs = RUNS,
        port: Annotated[int | None, typer.Option(metavar="N", min=0, max=65535, help="Of the page; 6006 or one near it if not given.")] = None,
    ) -> None:  # fmt: skip
        """Start TensorBoard on this machine for some runs, also for those on remote storage. Ctrl-C ends it.

        Example: dtrain tensorboard last"""
        from dtrain.cli import tensorboard_view

        raise typer.Exit(tensorboard_view.show([find(runs, name) for name in names or []], runs, port))
