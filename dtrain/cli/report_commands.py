"""The commands that look back at runs: report, compare, board, audit, verify, reproduce, rm and clean."""

from __future__ import annotations

import json
import os
import shutil
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
    Gpus,
    Html,
    Json,
    LastRun,
    Nodes,
    Quiet,
    RunNames,
    Runs,
    Set,
    Strategy,
    Workers,
    Yes,
    find,
    find_all,
    find_study,
    output,
)  # fmt: skip
from dtrain.common.errors import Exit, UsageError

if TYPE_CHECKING:
    from dtrain.control.remove import Removal, Removed
    from dtrain.study.folder import StudyDir


def add_to(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (report, compare, board, audit, verify, reproduce, rm, clean):
        app.command()(command)


def report(name: LastRun = LAST, runs: Runs = RUNS, html: Html = None, as_json: Json = False) -> None:
    """Say what a run spent its time on, what its failures cost and how its metrics went.

    Example: dtrain report last --html report.html"""
    from dtrain.report import report as reports
    from dtrain.report import run_record

    if study := find_study(runs, name):
        _report_study(study, html, as_json=as_json)
        return
    record = run_record.read(find(runs, name))
    if html:
        from dtrain.report.page import report_page

        write_page(html, report_page(record))
    elif as_json:
        print(json.dumps(reports.as_json(record), indent=1))
    else:
        print(reports.text(record))


def _report_study(study: StudyDir, html: Path | None, *, as_json: bool) -> None:
    from dtrain.study import control, page

    if html:
        write_page(html, page.report_page(study))
    else:
        print(json.dumps(control.public(study), indent=1) if as_json else page.text(study))


def compare(
    names: RunNames, runs: Runs = RUNS, html: Html = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture of the curves.")] = None,
    metric: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Draw this one; may be given several times.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Put runs beside each other: recipes, numbers, curves, and where their losses part.

    Example: dtrain compare digits-lr0.1 digits-lr0.01 --html compare.html"""
    from dtrain.report import comparison, comparison_views, run_record

    chosen = find_all(runs, names)
    if len(chosen) < 2:
        raise UsageError(f"there is only {chosen[0].id}", "Name two runs, or what several ids begin with.")
    found = comparison.compare([run_record.read(run) for run in chosen])
    drawn = comparison_views.chosen_metrics(found, metric or [])
    if html:
        write_page(html, comparison_views.html(found))
    if png:
        comparison_views.write_png(found, png, metric or [])
        print(png)
    if as_json:
        print(json.dumps(comparison.as_json(found), indent=1))
    elif not html and not png:
        width, colored = shutil.get_terminal_size((100, 24)).columns, sys.stdout.isatty()
        print(comparison_views.text(found, drawn, colored=colored, width=width))


def board(
    runs: Runs = RUNS,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Of the page on 127.0.0.1; one that is free if not given.", show_default=False)] = 0,
    control: Annotated[bool, typer.Option("--control", help="Let whoever has the address stop and resume runs.")] = False,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:  # fmt: skip
    """Show all runs on a live page of this machine: curves, failures, output, and runs beside each other. Ctrl-C ends it.

    Example: dtrain board --control"""
    from dtrain.board import server

    def started(board: server.Server) -> None:
        print(
            f"{board.url}\n  all runs in {runs.absolute()}{'' if control else ', to look at only'}; Ctrl-C ends it",
            flush=True,
        )
        if browser:
            import webbrowser

            webbrowser.open(board.url)

    server.serve(runs, port, control=control, on_start=started)


def audit(name: LastRun = LAST, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Check from the workers' ledgers that every committed step trained on its samples, none twice, none left out.

    Example: dtrain audit last"""
    from dtrain.report.audit import audit as audit_of

    found = audit_of(find(runs, name))
    if found is None:
        raise UsageError(
            "this run has no record of samples", "Scripts keep their own data order; tasks and functions are recorded."
        )
    if as_json:
        print(json.dumps(asdict(found) | {"clean": found.clean}, indent=1))
    else:
        print(
            f"{found.steps} committed steps, {found.samples} samples: {found.twice} twice, {found.skipped} skipped, {found.altered} altered"
        )
        print(f"{found.repeated_steps} steps were undone and trained again")
        if found.left_out:
            print(
                f"{found.left_out} samples were left out by train.on_nonfinite, train.spike or the scale of the loss in fp16"
            )
        print("\n".join([*found.took_over, *found.strange, *found.reasons[:20], *found.problems[:20]]))
    raise typer.Exit(int(Exit.DONE if found.clean else Exit.USER_CODE))


def verify(
    name: LastRun = LAST, runs: Runs = RUNS, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None,
    cluster: Cluster = None, sets: Set = None,
    step: Annotated[int | None, typer.Option(metavar="N", min=1, help="Up to the checkpoint of this step; the newest if not given.")] = None,
    every: Annotated[int | None, typer.Option(metavar="N", min=1, help="Again and again while the run goes on, every N of its steps.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train the steps between two checkpoints again, on this machine or where you say, and compare weights and optimizer to the
    last bit: the proof that a run is what its recipe gives, and a detector of processors that compute wrongly.

    Example: dtrain verify last --workers 2"""
    from dtrain.control import overrides
    from dtrain.verify import verification

    if step is not None and every is not None:
        raise UsageError("--step is one checkpoint, --every many of them", "Use one of them.")
    run = find(runs, name)
    given = overrides.of_options(gpus=gpus, workers=workers, nodes=nodes, strategy=strategy, cluster=cluster, sets=sets)
    found = (
        verification.followed(run, given, every, quiet=as_json) if every
        else iter([verification.verify(run, given, step, quiet=as_json)])
    )  # fmt: skip
    equal = True
    for one in found:
        print(json.dumps(one.public(), indent=1) if as_json else one.text(), flush=True)
        equal &= one.equal
    if not equal:
        raise typer.Exit(int(Exit.USER_CODE))


def reproduce(
    name: LastRun = LAST, runs: Runs = RUNS, gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, cluster: Cluster = None,
    venv: Annotated[bool, typer.Option("--venv", help="Train it in a virtual environment of the Python and the packages that it recorded.")] = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Train a run once more, with the code, the recipe and the seed that it recorded, and compare the weights at the end.

    Example: dtrain reproduce last --venv"""
    from dtrain.cli import terminal
    from dtrain.control import overrides
    from dtrain.report import comparison, run_record
    from dtrain.verify import environment, reproduction

    run = find(runs, name)
    if venv:
        python = environment.python_of(run)
        given = {"--gpus": gpus, "--workers": workers, "--nodes": nodes, "--cluster": cluster}
        options = [f"{option}={value}" for option, value in given.items() if value is not None]
        words = ["reproduce", str(run.path), *options, *(["--quiet"] if quiet else [])]
        os.execve(python, [python, "-P", "-m", "dtrain", *words], environment.variables_of(python, os.environ))
    again = reproduction.repetition(run, overrides.of_options(gpus=gpus, workers=workers, nodes=nodes, cluster=cluster))
    for text in reproduction.reservations(run, again):
        print(f"dtrain: not as {run.id} was trained: {text}", file=sys.stderr, flush=True)
    if code := terminal.run_here(again, output(quiet=quiet), resumed=False):
        raise typer.Exit(code)
    found = comparison.verdict(run_record.read(run), run_record.read(again))
    print(f"{run.id} and {again.id}: {found.text}")
    if found.equal is False:
        raise typer.Exit(int(Exit.USER_CODE))


def rm(
    names: RunNames, runs: Runs = RUNS, yes: Yes = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove runs that have ended, with their copies on remote storage; asks first. With --json it does not ask, and removes nothing
    without --yes.

    Example: dtrain rm digits-lr0.1"""
    from dtrain.control import remove

    studies = {name: study for name in names if name != LAST and (study := find_study(runs, name))}
    found: list[Removed] = []
    for name, study in studies.items():
        from dtrain.cli import study_view

        found += study_view.remove(study, name, yes=yes, as_json=as_json)
    names = [name for name in names if name not in studies]
    chosen = find_all(runs, names)
    for run in chosen:
        remove.refuse_live(run)
    if chosen:
        found += _remove([remove.planned(run) for run in chosen], yes=yes, as_json=as_json)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))


def clean(
    keep_best: Annotated[int, typer.Option(metavar="N", min=0, help="Keep the best N runs of each task.")],
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="By this one; accuracy or loss if not given, held-out numbers first.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Only among runs whose ids begin with it, or fit it as a pattern.")] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Remove their checkpoints only.")] = False,
    runs: Runs = RUNS, yes: Yes = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove all runs that have ended but the best ones; asks first. A run, or a study, that goes on is not touched. With --json it does
    not ask, and removes nothing without --yes.

    Example: dtrain clean --keep-best 3 --metric accuracy"""
    from dtrain.control import remove
    from dtrain.control import select as run_list
    from dtrain.record import folder
    from dtrain.study import folder as studies

    kept = tuple(f"{study.id}-" for study in studies.all_studies(runs) if study.goes_on())
    named = [run for run in folder.all_runs(runs) if run_list.is_named(run.id, name)]
    chosen = [run for run in named if not run.id.startswith(kept)]
    worse = list(remove.worse_than_best(chosen, keep_best, metric))
    if not worse and not as_json:
        print(f"nothing to remove in {runs.absolute()}")
        return
    found = _remove([remove.planned(run) for run in worse], yes=yes, as_json=as_json, checkpoints_only=checkpoints)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))


def _remove(removals: Sequence[Removal], *, yes: bool, as_json: bool, checkpoints_only: bool = False) -> list[Removed]:
    """Remove them, after asking; a program is not asked, and gets what was removed, or would be."""
    from dtrain.control import remove
    from dtrain.show import render

    if as_json:
        for one in removals if yes else ():
            remove.remove(one, checkpoints_only=checkpoints_only)
        return [remove.Removed(one.run.id, one.state, one.bytes, one.storage, yes) for one in removals]
    if not remove.agreed(removals, yes=yes, what="the checkpoints" if checkpoints_only else "everything"):
        print("nothing was removed")
        return []
    for one in removals:
        remove.remove(one, checkpoints_only=checkpoints_only)
    print(f"removed: {render.size(sum(one.bytes for one in removals))}")
    return []


def write_page(path: Path, text: str) -> None:
    """Write a page and say where; what stands in it may be private."""
    from dtrain.common.files import PRIVATE_FILE, write_whole
    from dtrain.show.render import size

    try:
        write_whole(path, text, PRIVATE_FILE)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", "Name another file.") from None
    print(f"{path} ({size(len(text.encode()))})")
