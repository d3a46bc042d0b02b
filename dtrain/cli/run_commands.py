"""The commands that start runs, or show what they would start: run, resume, submit, resize, attach and plan."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtrain.cli.options import (
    LAST,
    RUNS,
    Cluster,
    Code,
    Detach,
    DryRun,
    Env,
    Gpus,
    Json,
    LastRun,
    Name,
    Nodes,
    Note,
    PlanMemory,
    Profile,
    Quiet,
    RunName,
    Runs,
    Seed,
    Set,
    Strategy,
    Tag,
    Verbose,
    Workers,
    find,
    find_study,
    output,
)  # fmt: skip
from dtrain.common import environment
from dtrain.common.errors import UsageError

if TYPE_CHECKING:
    from dtrain.api.plan import LaunchPlan

Recipe = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file (see recipes/), or without one a script, or a task or function: file.py:Name.",
    ),
]
Args = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- ARGUMENT", help="Of the script; what begins with a dash stands behind '--'."),
]
Warm = Annotated[
    str | None,
    typer.Option(
        envvar=environment.WARM, metavar="TIME", callback=lambda value: _keep_warm(value),
        help="Keep what was imported this long for the next run, as 10m or 2h; see 'dtrain warm'.",
    ),
]  # fmt: skip

Sweep = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=A,B,C", help="A run for each of these values; given twice: for each pair."),
]
Best = Annotated[
    bool,
    typer.Option(
        "--best", help="RECIPE is a study: take the recipe of its best trial, which is written beside its own."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (run, resume, submit, resize, attach, plan):
        app.command()(command)


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


def run(
    path: Recipe, args: Args = None, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, profile: Profile = None,
    name: Name = None, seed: Seed = None, env: Env = None, tag: Tag = None, note: Note = None, sets: Set = None, runs: Runs = RUNS,
    detach: Detach = False, dry_run: DryRun = False, quiet: Quiet = False, verbose: Verbose = False, warm: Warm = None, best: Best = False,
    sweep: Sweep = None,
) -> None:  # fmt: skip
    """Train a recipe or a script, and watch it. Ctrl-C saves and stops; twice stops at once.

    Example: dtrain run recipe.yaml --workers 2 --set train.steps=500; dtrain run train.py -- --lr 0.1"""
    from dtrain.cli import terminal
    from dtrain.control import create, overrides

    shown = output(quiet=quiet, verbose=verbose)
    path = _of_best(path, runs) if best else path
    given = overrides.of_options(
        gpus=gpus,
        workers=workers,
        nodes=nodes,
        strategy=strategy,
        cluster=cluster,
        name=name,
        seed=seed,
        env=env,
        args=args,
        tags=tag,
        note=note,
        sets=sets,
    )
    if sweep and detach:
        raise UsageError(
            "--sweep and --detach", "Start them all with dtrain submit --sweep, one after another with --at-most 1."
        )
    if dry_run:
        return _print_plans(create.planned(path, runs, given, sweep or []), runs)
    if sweep:
        from dtrain.cli import study_view

        raise typer.Exit(study_view.sweep(path, runs, given, sweep, 1, shown))
    made = create.new_run(path, runs, given)
    terminal.print_made_recipe(path, made, shown)
    if detach:
        return terminal.submit(made, shown)
    raise typer.Exit(terminal.run_here(made, shown, resumed=False))


def resume(
    name: RunName, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, env: Env = None, sets: Set = None, runs: Runs = RUNS,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="Take the settings of this recipe instead of the run's own.")] = None,
    profile: Profile = None,
    trials: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of a study: how many there are in the end.")] = None,
    code: Annotated[Code, typer.Option(help="Train with the code that the run began with, or with the code as it is now.")] = Code.SAME,
    detach: Detach = False, dry_run: DryRun = False, quiet: Quiet = False, verbose: Verbose = False, warm: Warm = None,
) -> None:  # fmt: skip
    """Go on with a run from its newest valid checkpoint, also with another number of workers.

    Example: dtrain resume last --workers 4"""
    from dtrain.cli import terminal
    from dtrain.control import create, overrides

    given = overrides.of_options(gpus=gpus, workers=workers, nodes=nodes, env=env, sets=sets)
    if study := find_study(runs, name):
        from dtrain.cli import study_view

        return study_view.resume(study, given, trials, detach=detach, quiet=quiet)
    chosen, shown = find(runs, name), output(quiet=quiet, verbose=verbose)
    if trials:
        raise UsageError(f"--trials is about a study, and {chosen.id} is a run", "Leave it out.")
    if dry_run:
        return _print_plans([create.planned_resume(chosen, given, recipe, new_code=code is Code.NEW)], runs)
    if edits := create.prepare_resume(chosen, given, recipe, new_code=code is Code.NEW):
        print(edits, file=sys.stderr if quiet else sys.stdout, flush=True)
    if detach:
        return terminal.submit(chosen, shown)
    raise typer.Exit(terminal.run_here(chosen, shown, resumed=chosen.events.exists()))


def submit(
    path: Recipe, args: Args = None, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, profile: Profile = None,
    name: Name = None, seed: Seed = None, env: Env = None, tag: Tag = None, note: Note = None, sets: Set = None, runs: Runs = RUNS,
    sweep: Sweep = None,
    at_most: Annotated[int | None, typer.Option(metavar="N", min=1, help="At once, as a study that goes on without this terminal; waits for all, then prints a table.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Start the study that the section tune of the recipe asks for.")] = False,
    dry_run: DryRun = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Start a recipe or a script, and return: it goes on without this terminal.

    Example: dtrain submit recipe.yaml --sweep train.seed=0,1,2 --at-most 1"""
    from dtrain.cli import terminal
    from dtrain.control import create, overrides

    shown = output(quiet=quiet)
    given = overrides.of_options(
        gpus=gpus,
        workers=workers,
        nodes=nodes,
        strategy=strategy,
        cluster=cluster,
        name=name,
        seed=seed,
        env=env,
        args=args,
        tags=tag,
        note=note,
        sets=sets,
    )
    if dry_run:
        _print_plans(create.planned(path, runs, given, sweep or []), runs)
        return
    if tune:
        from dtrain.cli import study_view

        if sweep or at_most:
            raise UsageError("--tune and --sweep both say which runs there are", "Give one of them.")

        study_view.begin(path, runs, given, quiet=quiet)
        return
    if at_most is not None:
        from dtrain.cli import study_view

        raise typer.Exit(study_view.sweep(path, runs, given, sweep or [], at_most, shown))
    for member in create.new_sweep(path, runs, given, sweep or []):
        made = member()
        terminal.print_made_recipe(path, made, shown)
        terminal.submit(made, shown)


def resize(
    name: LastRun = LAST, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, runs: Runs = RUNS, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Go on with a running run at another size: it saves at an agreed step, and goes on from there without this terminal.

    Example: dtrain resize last --workers 4"""
    from dtrain.cli import terminal
    from dtrain.control import overrides, resize

    run = find(runs, name)
    submitted = resize.resize(run, overrides.of_options(gpus=gpus, workers=workers, nodes=nodes))
    if submitted is None:
        print(f"{run.id} came to its end before it could be resized")
    else:
        terminal.print_submitted(run, submitted, output(quiet=quiet))


def attach(name: LastRun = LAST, runs: Runs = RUNS, verbose: Verbose = False) -> None:
    """Watch a run that was submitted, or started elsewhere. Ctrl-C asks whether to detach or to stop it.

    Example: dtrain attach last"""
    from dtrain.cli import study_view, terminal

    if study := find_study(runs, name):
        raise typer.Exit(study_view.attach(study))
    raise typer.Exit(terminal.attach(find(runs, name), output(verbose=verbose)))


def plan(
    path: Recipe, args: Args = None, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, profile: Profile = None, name: Name = None, seed: Seed = None, env: Env = None, sets: Set = None, runs: Runs = RUNS,
    memory: PlanMemory = False, as_json: Json = False, best: Best = False,
) -> None:  # fmt: skip
    """Show what would run where, with which environment; no worker is started.

    Example: dtrain plan recipe.yaml --cluster slurm"""
    from dtrain.control import create, overrides

    path = _of_best(path, runs) if best else path
    given = overrides.of_options(
        gpus=gpus,
        workers=workers,
        nodes=nodes,
        strategy=strategy,
        cluster=cluster,
        name=name,
        seed=seed,
        env=env,
        args=args,
        sets=sets,
    )
    _print_plans(create.planned(path, runs, given), runs, as_json=as_json, memory=memory)


def _of_best(path: Path, runs: Path) -> Path:
    """The recipe of the best trial of a study, which is written to a file."""
    from dtrain.study import control, folder

    written = control.best_recipe(folder.require(runs, str(path)))
    print(f"wrote {written}", file=sys.stderr)
    return written


def _print_plans(plans: Sequence[LaunchPlan], runs: Path, *, as_json: bool = False, memory: bool = False) -> None:
    from dtrain.cli import plan_view

    for launch in plans:
        shown = plan_view.plan_view(launch, runs, memory=memory)
        print(json.dumps(asdict(shown), indent=1) if as_json else plan_view.plan_text(shown))
