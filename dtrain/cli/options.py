"""Arguments and options that several commands share, and finding the run that was meant."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtrain.cli.completion import plugins, run_ids, settings
from dtrain.common import environment

if TYPE_CHECKING:
    from dtrain.record.folder import RunDir

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="An id, an unambiguous prefix, a path, a URL, or 'last'.", autocompletion=run_ids
    ),
]
RunNames = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Ids, unambiguous prefixes, paths, URLs, or 'last'.", autocompletion=run_ids),
]
Runs = Annotated[Path, typer.Option(envvar=environment.RUNS, metavar="FOLDER", help="Where the run folders are.")]
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
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Begins the run's id.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any value of the recipe, as section.key=value.", autocompletion=settings),
]  # fmt: skip
RUNS = Path("runs")


class Code(str, Enum):
    """The code that a resumed run trains with."""

    SAME = "same"
    NEW = "new"


def find(runs: Path, name: str) -> RunDir:
    """The run that was meant, as it is now, also if it is kept on remote storage."""
    from dtrain.storage import run_sync

    return run_sync.find(runs, name)
