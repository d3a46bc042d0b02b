"""`dtrain tune`, and what the commands for runs do if they are given a study."""

from __future__ import annotations

from typing import Annotated

import typer

from dtrain.cli.options import (
    RUNS,
    Cluster,
    Detach,
    Gpus,
    Name,
    Nodes,
    Profile,
    Quiet,
    Runs,
    Set,
    Strategy,
    Workers,
)
from dtrain.cli.run_commands import Recipe

Over = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUES",
        help="What is tried for a key: 'params.lr=log(1e-5,1e-1)', params.width=64,128; may be given several times.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Make it a command of the command line."""
    app.command()(tune)


def tune(
    context: typer.Context,
    path: Recipe,
    over: Over = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What is compared: accuracy, or last(loss), mean(loss,3).")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(metavar="min|max", help="Whether less or more of it is better, if its name does not say it."),
    ] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Number of trials.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Start none after this time: 30m, 6h.")] = None,
    samples: Annotated[
        str | None, typer.Option(metavar="N", help="Start none after so many samples of all trials: 500k, 10M.")
    ] = None,
    device_hours: Annotated[
        float | None, typer.Option(metavar="H", help="Start none after so many hours times workers.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="tpe, random, grid, sobol, cma, or any of Optuna.")
    ] = None,
    early_stop: Annotated[
        str | None, typer.Option(metavar="NAME", help="asha, hyperband, median, percentile, pbt or none.")
    ] = None,
    at_once: Annotated[int | None, typer.Option(metavar="N", help="Trials that train at the same time.")] = None,
    sampler_seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of the choice of values.")] = None,
    gpus: Gpus = None,
    workers: Workers = None,
    nodes: Nodes = None,
    strategy: Strategy = None,
    cluster: Cluster = None,
    profile: Profile = None,
    name: Name = None,
    sets: Set = None,
    runs: Runs = RUNS,
    detach: Detach = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe many times with other values, and find the best: a study, which goes on without this terminal.

    Example: dtrain tune recipe.yaml --over params.width=64,128 --metric accuracy --trials 20 --early-stop asha"""
    from dtrain.cli import study_view
    from dtrain.control import overrides
    from dtrain.job.tune import taken
    from dtrain.study import control

    given = overrides.of_options(
        gpus=gpus, workers=workers, nodes=nodes, strategy=strategy, cluster=cluster, name=name, sets=sets
    )
    given += [control.over(text) for text in over or []]
    chosen, _ = taken(context.params | {"over": None})
    given += [(("tune", key), value, f"--{key.replace('_', '-')} {value}") for key, value in chosen.items()]
    study = study_view.begin(path, runs, given, quiet=quiet)
    if not detach:
        raise typer.Exit(study_view.attach(study, quiet=quiet))
