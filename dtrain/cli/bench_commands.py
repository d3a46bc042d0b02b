"""The command that compares frameworks, strategies and numbers of workers by short runs: bench."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli import completion
from dtrain.cli.options import RUNS, Cluster, Gpus, Html, Json, Nodes, Runs, Set, Strategy, Workers


def add_to(app: typer.Typer) -> None:
    """Make it a command of the command line."""
    app.command()(bench)


def bench(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="One or more: the same model in PyTorch and TensorFlow, for example.")],
    over: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,C", help="Measure with each of these values; given twice: with each pair.", autocompletion=completion.settings)
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=5, help="Steps of each run; the first fifth is warm-up.")] = 100,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Measure everything so often, in turn, and take the medians.")] = 1,
    gpus: Gpus = None, workers: Workers = None, nodes: Nodes = None, strategy: Strategy = None, cluster: Cluster = None, sets: Set = None,
    runs: Runs = RUNS, html: Html = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture of the table.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Compare recipes, strategies, options and numbers of workers by short measured runs, one after another, and say which to take.

    Example: dtrain bench recipe.yaml --over strategy=ddp,fsdp --over resources.workers=1,2"""
    from dtrain.bench import result as bench_result
    from dtrain.bench import variants as bench_variants
    from dtrain.bench import views
    from dtrain.bench.runs import Bench
    from dtrain.cli.report_commands import write_page
    from dtrain.common.errors import UsageError
    from dtrain.control import overrides
    from dtrain.show import picture

    given = overrides.of_options(gpus=gpus, workers=workers, nodes=nodes, strategy=strategy, cluster=cluster, sets=sets)
    variants = bench_variants.variants(recipes, over or [], given, runs, steps)
    if png:
        picture.require()
    for path in (html, png):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"cannot write {path}: there is no folder {path.absolute().parent}")
    measuring = Bench(variants, runs, steps=steps, repeats=repeats, quiet=as_json)
    measuring.say(views.announcement(variants, steps, repeats))
    result = measuring.run()
    if as_json:
        print(json.dumps(bench_result.as_json(result), indent=1))
    else:
        print(views.text(result, shutil.get_terminal_size((100, 24)).columns, colored=sys.stdout.isatty()))
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        if result.measured and html:
            write_page(html, views.html(result))
        if result.measured and png:
            views.write_png(result, png)
            print(png)
    raise typer.Exit(measuring.exit_code)
