"""The commands that take a trained model out: weights and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli import completion
from dtrain.cli.options import RUNS, Json, RunName, Runs

Step = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="The checkpoint of this step; the newest if not given.")
]
Best = Annotated[
    str | None, typer.Option(metavar="METRIC", help="The checkpoint with the best evaluation by this metric.")
]
Code = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where the task's code is, if not where the run found it.")
]

Format = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT", help="See 'dtrain plugins'; with --layout, what it serves by default.",
        autocompletion=completion.plugins("exporter"),
    ),
]  # fmt: skip
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Write the folder that a server wants; see 'dtrain plugins'.",
        autocompletion=completion.plugins("layout"),
    ),
]  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (weights, export):
        app.command()(command)


def weights(
    name: RunName,
    to: Annotated[Path, typer.Option(metavar="PATH", help="Its ending says the form: .safetensors, .pt, .keras, .weights.h5, or a folder of Hugging Face.")],
    step: Step = None, best: Best = None, code: Code = None, runs: Runs = RUNS, as_json: Json = False,
) -> None:  # fmt: skip
    """Write the weights of a run to a file for other programs; its checkpoint is verified first.

    Example: dtrain weights last --best accuracy --to model.safetensors"""
    from dtrain.export import exporting, view
    from dtrain.weights import source

    saved = source.saved(runs, name, step, best)
    made = exporting.write_weights(saved, to, code)
    print(json.dumps(view.as_json(saved, made), indent=1) if as_json else view.weights_text(saved, made))


def export(
    name: RunName,
    to: Format = None,
    output: Annotated[Path | None, typer.Option(metavar="PATH", help="What to write; the run's name with the format's ending if not given.")] = None,
    layout: Layout = None,
    latency: Annotated[bool, typer.Option("--latency", help="Measure the exported model beside the framework's own.")] = False,
    step: Step = None, best: Best = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Which of a task's several models.")] = "",
    version: Annotated[int, typer.Option("--model-version", metavar="N", min=1, help="With --layout: the number of this version.")] = 1,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the format: opset=18.")] = None,
    code: Code = None, runs: Runs = RUNS, as_json: Json = False,
) -> None:  # fmt: skip
    """Turn a run's model into the form of another runtime, and prove by held-out data that it gives the same.

    Example: dtrain export last --to onnx --latency"""
    from dtrain.export import choice, exporting, view
    from dtrain.weights import source

    saved = source.saved(runs, name, step, best)
    form = choice.exporter(saved, to, layout, sets or [])
    own = f"{saved.job.name}-{model}" if model else saved.job.name
    path = output or Path(f"{own}{'' if layout else form.ending.rstrip('/')}")
    made = exporting.export(
        saved, form.name, path, options=form.options, model=model, latency=latency, code=code, layout=layout or "", version=version,
    )  # fmt: skip
    print(json.dumps(view.as_json(saved, made), indent=1) if as_json else view.export_text(saved, made, form.name))
