"""`dtrain tune`, and what the commands for runs do if they are given a study."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtrain.cli import screen
from dtrain.cli.options import (
    RUNS,
    Cluster,
    Detach,
    Gpus,
    Name,
    Nodes,
    Output,
    Quiet,
    Runs,
    Set,
    Strategy,
    Workers,
)
from dtrain.cli.run_commands import Recipe
from dtrain.common.errors import Exit

if TYPE_CHECKING:
    from dtrain.launch.recipe import Override
    from dtrain.study.folder import StudyDir

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
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="tpe, random, grid, sobol, cma, or any of Optuna.")
    ] = None,
    early_stop: Annotated[
        str | None, typer.Option(metavar="NAME", help="asha, hyperband, median, percentile or none.")
    ] = None,
    at_once: Annotated[int | None, typer.Option(metavar="N", help="Trials that train at the same time.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of the choice of values.")] = None,
    gpus: Gpus = None,
    workers: Workers = None,
    nodes: Nodes = None,
    strategy: Strategy = None,
    cluster: Cluster = None,
    name: Name = None,
    sets: Set = None,
    runs: Runs = RUNS,
    detach: Detach = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe many times with other values, and find the best: a study, which goes on without this terminal.

    Example: dtrain tune recipe.yaml --over params.width=64,128 --metric accuracy --trials 20 --early-stop asha"""
    from dtrain.control import overrides
    from dtrain.launch import recipe
    from dtrain.study import control

    given = overrides.of_options(
        gpus=gpus, workers=workers, nodes=nodes, strategy=strategy, cluster=cluster, name=name, sets=sets
    )
    said: dict[str, Any] = {
        "metric": metric,
        "mode": mode,
        "trials": trials,
        "budget": budget,
        "sampler": sampler,
        "early_stop": early_stop,
        "at_once": at_once,
        "seed": seed,
    }
    given += [control.over(text) for text in over or []]
    given += [
        (("tune", key), value, f"--{key.replace('_', '-')} {value}") for key, value in said.items() if value is not None
    ]
    document, folder = recipe.read(path, given)
    study = control.make(document, folder, runs, given, str(path.absolute()))
    control.begin(study)
    print(
        study.id
        if quiet
        else f"began the study {study.id}\n  watch it: dtrain attach {study.id}    stop it: dtrain stop {study.id}",
        flush=True,
    )
    if not detach:
        raise typer.Exit(attach(study, quiet=quiet))


def attach(study: StudyDir, *, quiet: bool = False) -> int:
    """Show a study until it ends; Ctrl-C asks whether to detach or to stop it. Returns its exit code."""
    from dtrain.study import control, views

    seen: dict[int, str] = {}
    looks = control.Looks(study)
    on_screen = sys.stdout.isatty() and not quiet

    def show(*, last: bool = False) -> None:
        if quiet or not (last or looks.due()):
            return
        if on_screen:
            if (text := views.status(study, screen.width())) != seen.get(-1):
                screen.clear()
                print(text, flush=True)
                seen[-1] = text
            return
        for trial in control.trials(study):
            text = views.line(study, trial)
            if text != seen.get(trial.number):
                print(text, flush=True)
                seen[trial.number] = text

    while True:
        try:
            control.wait(study, show)
            break
        except KeyboardInterrupt:
            if not _wants_to_stop(study):
                print(f"detached; {study.id} goes on. Watch it again: dtrain attach {study.id}")
                return int(Exit.DONE)
            print(control.stop(study, now=False, wait=False))
    show(last=True)
    if on_screen:
        screen.clear()
    code = views.exit_code(study)
    if code == Exit.USAGE or (code and not control.trials(study)):
        print(f"dtrain: {views.status(study)}", file=sys.stderr)
    else:
        print(views.status(study, screen.width()), flush=True)
    return code


def sweep(path: Path, runs: Path, given: Sequence[Override], sweeps: Sequence[str], at_most: int, shown: Output) -> int:
    """Run the members of a sweep as a study, wait for them, and print a table; returns the first exit code that is not 0."""
    from dtrain.cli import terminal
    from dtrain.control.state import state_of
    from dtrain.study import control

    study = control.sweep(path, runs, given, sweeps, at_most)
    control.begin(study)
    print(study.id if shown is Output.QUIET else f"began the study {study.id}", flush=True)
    try:
        code = control.wait(study) or 0
    except KeyboardInterrupt:
        print(f"{study.id} goes on (dtrain stop {study.id})")
        return int(Exit.INTERRUPTED)
    started = sorted(study.trial_runs(), key=lambda run: int(run.id.rpartition("-")[2]))
    print(terminal.compared(started), flush=True)
    codes = [state_of(one).exit_code for one in started]
    return next((Exit.GAVE_UP if one is None else one for one in codes if one != Exit.DONE), code)


def _wants_to_stop(study: StudyDir) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"\n[d]etach and leave {study.id} running, or [s]top it (its trials save first)? [d] ")
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return answer.strip().lower().startswith("s")


def status(study: StudyDir, *, watch: bool, as_json: bool) -> None:
    """Print how a study is doing."""
    from dtrain.study import control, views

    if watch and not as_json:
        attach(study)
    elif as_json:
        print(json.dumps(control.public(study), indent=1))
    else:
        print(views.status(study, screen.width()))


def report(study: StudyDir, html: Path | None, *, as_json: bool) -> None:
    """Print or write the report of a study."""
    from dtrain.cli.report_commands import write_page
    from dtrain.study import control, page

    if html:
        write_page(html, page.report_page(study))
    elif as_json:
        print(json.dumps(control.public(study), indent=1))
    else:
        print(page.text(study))


def resume(study: StudyDir, *, detach: bool, quiet: bool) -> None:
    """Go on with a study, and watch it."""
    from dtrain.study import control

    control.resume(study)
    print(study.id if quiet else f"going on with {study.id}", flush=True)
    if not detach:
        raise typer.Exit(attach(study, quiet=quiet))


def remove(study: StudyDir, *, yes: bool) -> None:
    """Remove a study with its trials, after asking."""
    from dtrain.show.render import counted
    from dtrain.show.render import size as of_bytes
    from dtrain.study import control

    print(f"  {study.id}  {counted(len(study.trial_runs()), 'trial')}  {of_bytes(control.size(study))}")
    if not yes and not _agreed():
        print("nothing was removed")
        return
    control.remove(study)
    print(f"removed: {study.id}")


def _agreed() -> bool:
    from dtrain.common.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("a study and its trials would be removed", "To do it without a question: --yes")
    return input("Remove it and its trials? [y/N] ").strip().lower() in ("y", "yes")
