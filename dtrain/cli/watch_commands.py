"""The commands that show how runs are doing, and stop them: ps, status, logs and stop."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtrain.cli import screen
from dtrain.cli.options import LAST, RUNS, Json, LastRun, Quiet, Runs, find, find_all, find_study
from dtrain.common.errors import Exit, UsageError

if TYPE_CHECKING:
    from dtrain.study.folder import StudyDir

WATCH_SECONDS = 2.0
STUDIES_SHOWN = 5
"""Newest studies that `ps` names."""
Several = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Ids, paths, URLs; what begins several ids means all of them. The one that was started last if none is given.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (ps, status, logs, stop, wait):
        app.command()(command)


def ps(
    runs: Runs = RUNS, as_json: Json = False,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the N runs that were started last; with --sort, the first N.")] = None,
    sort: Annotated[str | None, typer.Option(metavar="KEY", help="A column or a metric, the best first: accuracy, loss, step, started …")] = None,
    state: Annotated[list[str] | None, typer.Option(metavar="STATE", help="Only these: done, failed, running …; may be given several times.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Only ids that begin with it, or fit it as a pattern: 'digits-*'.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY[=VALUE]", help="Only runs with this tag; given several times: with all of them.")] = None,
    commit: Annotated[str | None, typer.Option(metavar="HASH", help="Only runs whose code was at the commit that begins with it.")] = None,
) -> None:  # fmt: skip
    """List the runs, the one that was started last at the end.

    Example: dtrain ps --state done --sort accuracy --limit 10"""
    from dtrain.agent import gpu_leases
    from dtrain.cli import summary
    from dtrain.control import select as run_list
    from dtrain.control import state as queries
    from dtrain.record import code_snapshot, folder
    from dtrain.study import folder as study_folder

    chosen = [run for run in folder.all_runs(runs) if run_list.is_named(run.id, name)]
    if commit:
        chosen = [run for run in chosen if code_snapshot.origin_of(run.code).commit.startswith(commit.lower())]
    last = 0 if sort or state or tag else -(limit or 0)
    held = gpu_leases.of_runs()
    rows = run_list.with_state([queries.row(run, held.get(str(run.path), ())) for run in chosen[last:]], state or [])
    rows = run_list.with_tags(rows, tag or [])
    rows = run_list.in_order(rows, sort)[:limit] if sort else rows[-(limit or 0) :]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif rows:
        print(summary.table(rows, run_list.metric_column(rows, sort), screen.width()))
        if studies := study_folder.all_studies(runs)[-STUDIES_SHOWN:]:
            print("studies: " + ", ".join(f"{one.id} ({one.state})" for one in studies))
    elif name or state or tag or commit:
        print(f"no such runs in {runs.absolute()}")
    else:
        print(f"no runs in {runs.absolute()} (another folder: --runs or DTRAIN_RUNS)")


def status(
    name: LastRun = LAST, runs: Runs = RUNS,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again until it ends.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Say how a run is doing, or how it went.

    Example: dtrain status last --watch"""
    from dtrain.cli import summary
    from dtrain.control import state as queries

    if study := find_study(runs, name):
        from dtrain.cli import study_view

        return study_view.status(study, watch=watch, as_json=as_json)
    chosen, before = find(runs, name), ""
    while True:
        state = queries.state_of(chosen)
        public = state.public() | {"folder": str(chosen.path)}
        text = json.dumps(public, indent=None if watch else 1) if as_json else summary.status(state, chosen)
        if text != before:
            screen.clear() if watch and not as_json else None
            print(text, flush=True)
        if not watch or state.exit_code is not None or state.phase == "lost":
            return None
        before = text
        time.sleep(WATCH_SECONDS)


def logs(
    name: LastRun = LAST, runs: Runs = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends, with what happens to it in between.")] = False,
    lines: Annotated[int | None, typer.Option("-n", "--lines", metavar="N", min=0, help="Of each rank, only the last N lines so far.")] = None,
    rank: Annotated[list[int] | None, typer.Option(metavar="N", help="Only this rank; may be given several times.")] = None,
    attempt: Annotated[int | None, typer.Option(metavar="N", help="Only what was written in this attempt.")] = None,
    grep: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only lines in which this regular expression is found.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only what was written since: 10m (ago), 03:00, '2026-11-24 03:00'; to within 5 s.")] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Lines that several ranks wrote once, with their ranks.")] = False,
) -> None:  # fmt: skip
    """Print the workers' output.

    Example: dtrain logs last --attempt 2 --grep 'loss|nan'"""
    from dtrain.cli import logs as printed

    wanted = printed.chosen(rank or [], attempt, grep, since, fold=fold, last=lines)
    printed.print_logs(find(runs, name), wanted, follow=follow)


def stop(
    names: Several = None,
    runs: Runs = RUNS,
    everything: Annotated[bool, typer.Option("--all", help="Every run in the folder that goes on.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Do not save first.")] = False,
    wait: Annotated[bool, typer.Option(help="Until the run has ended.")] = True,
) -> None:  # fmt: skip
    """Save and stop a run, or several, wherever they were started; 'dtrain resume' goes on.

    Example: dtrain stop last"""
    from dtrain.cli import terminal
    from dtrain.control.state import goes_on
    from dtrain.record import folder

    if everything and names:
        raise UsageError("--all means every run, and a run is named as well", "Use one of them.")
    studies = _studies(runs, names or [LAST], everything=everything)
    for study in studies:
        from dtrain.study import control

        print(control.stop(study, now=now, wait=wait), flush=True)
    left = [name for name in names or [LAST] if not find_study(runs, name)]
    if studies and not left:
        return
    chosen = folder.all_runs(runs) if everything else find_all(runs, left)
    if everything or len(chosen) > 1:
        chosen = [run for run in chosen if goes_on(run)]
    if not chosen:
        print(f"no run goes on in {runs.absolute()}")
    elif not terminal.stop_all(chosen, now=now, wait=wait):
        raise typer.Exit(int(Exit.GAVE_UP))


def _studies(runs: Path, names: Sequence[str], *, everything: bool) -> list[StudyDir]:
    """The studies among what was named, or all that go on."""
    from dtrain.study import folder

    if everything:
        return [study for study in folder.all_studies(runs) if study.goes_on()]
    return [study for study in (find_study(runs, name) for name in names) if study]


def wait(names: Several = None, runs: Runs = RUNS, quiet: Quiet = False) -> None:
    """Wait until runs have ended, for shell scripts: the exit code is that of the first run that is not done, otherwise 0.

    Example: dtrain wait last && dtrain export last --to onnx"""
    from dtrain.control import follow
    from dtrain.show import render

    codes = []
    for study in _studies(runs, names or [LAST], everything=False):
        from dtrain.study import control

        codes.append(control.wait(study) or 0)
        if not quiet:
            print(f"{study.id}: {study.state}", flush=True)
    left = [name for name in names or [LAST] if not find_study(runs, name)]
    for run in find_all(runs, left):
        state = follow.until_ended(run)
        codes.append(int(Exit.GAVE_UP) if state.exit_code is None else state.exit_code)
        if not quiet:
            print(f"{run.id}: {state.outcome}" + (f" - {render.ended_why(state)}" if codes[-1] else ""), flush=True)
    if failed := next(filter(None, codes), 0):
        raise typer.Exit(failed)
