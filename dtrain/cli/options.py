"""Arguments and options that several commands share, and finding the run that was meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtrain.cli.completion import plugins, run_ids, settings
from dtrain.common import environment
from dtrain.common.errors import UsageError

if TYPE_CHECKING:
    from dtrain.record.folder import RunDir
    from dtrain.study.folder import StudyDir

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="An id, an unambiguous prefix, a path, a URL, or 'last'.", autocompletion=run_ids
    ),
]
LAST = "last"
LastRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="An id, an unambiguous prefix, a path, or a URL; the one that was started last if not given.",
        autocompletion=run_ids,
        show_default=False,
    ),
]
RunNames = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN",
        help="Ids, paths, URLs, 'last'; what begins several ids, or a pattern, means all of them.",
        autocompletion=run_ids,
    ),
]
Runs = Annotated[Path, typer.Option(envvar=environment.RUNS, metavar="FOLDER", help="Where the run folders are.")]
PlanMemory = Annotated[
    bool, typer.Option("--memory", help="Build the task's model, without its memory, and show what a rank needs.")
]
Json = Annotated[bool, typer.Option("--json", help="For a program to read.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that opens without a network.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Gpus = Annotated[int | None, typer.Option(metavar="N", help="Number of workers, each on a GPU.")]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Replicas that train, one a device.")]
Nodes = Annotated[int | None, typer.Option(metavar="N", help="Machines to spread them over.")]
Strategy = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="How the workers train together; see 'dtrain plugins'.", autocompletion=plugins("strategy")),
]  # fmt: skip
Cluster = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Where they run; see 'dtrain plugins'.", autocompletion=plugins("cluster")),
]  # fmt: skip
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of weights, sample order and dropout: train.seed.")]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env", metavar="NAME=VALUE", help="An environment variable of every worker; may be given several times."
    ),
]
Tag = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        metavar="KEY=VALUE",
        help="A word to find the run by: dtrain ps --tag KEY=VALUE; may be given several times.",
    ),
]
Note = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What the run is for; 'dtrain status' and 'report' show it.")
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not watch it: it goes on without this terminal.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print how it ended, or the run's id if it is detached, and nothing else.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print the output of every rank, not of rank 0 alone.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")]
Profile = Annotated[
    str | None,
    typer.Option(
        envvar=environment.PROFILE, metavar="NAME", callback=lambda value: _use_profile(value),
        help="Fill in what the recipe leaves out from this profile of .dtrain.yaml or ~/.config/dtrain/config.yaml.",
    ),
]  # fmt: skip
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Begins the run's id.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any value of the recipe, as section.key=value.", autocompletion=settings),
]  # fmt: skip
RUNS = Path("runs")


def _use_profile(name: str | None) -> str | None:
    """Put the name into the environment, where whatever reads a recipe finds it."""
    if name:
        os.environ[environment.PROFILE] = name
    return name


class Output(Enum):
    """How much of a run is printed while it goes on."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


def output(*, quiet: bool = False, verbose: bool = False) -> Output:
    """Return how much was asked for; raises `UsageError` if both were."""
    if quiet and verbose:
        raise UsageError("--quiet prints less, and --verbose more", "Give one of them.")
    return Output.QUIET if quiet else Output.VERBOSE if verbose else Output.NORMAL


class Code(str, Enum):
    """The code that a resumed run trains with."""

    SAME = "same"
    NEW = "new"


def find(runs: Path, name: str) -> RunDir:
    """The run that was meant, as it is now, also if it is kept on remote storage."""
    from dtrain.storage import run_sync

    return run_sync.find(runs, name)


def find_study(runs: Path, name: str) -> StudyDir | None:
    """The study that was meant; None if a run was. Of a study, the last run is a trial that nobody has started: the study is meant."""
    from dtrain.record.folder import all_runs
    from dtrain.study import folder

    if name != LAST:
        return folder.find(runs, name)
    newest = next(reversed(all_runs(runs)), None)
    return folder.of_trial(newest) if newest else None


def find_all(runs: Path, names: Sequence[str]) -> list[RunDir]:
    """Find the runs that were meant, each once; a prefix or a pattern means all that fit it."""
    from dtrain.control.select import is_named
    from dtrain.record import folder
    from dtrain.storage import run_sync

    found: dict[Path, RunDir] = {}
    for name in names:
        if not name:
            raise UsageError("an empty text names no run", "Name one, or 'last'; 'dtrain ps' lists them.")
        plain = "://" in name or name == LAST or folder.is_run(Path(name)) or folder.is_run(runs / name)
        fitting = [] if plain else [run for run in folder.all_runs(runs) if is_named(run.id, name)]
        for run in fitting or [find(runs, name)]:
            run_sync.refresh(run)
            found[run.path] = run
    return list(found.values())
