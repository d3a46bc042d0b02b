"""The commands about recipes themselves: init, schema and explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli.options import Json
from dtrain.common.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (init, schema, explain):
        app.command()(command)


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False, help="Where to write; this folder if not given.")] = Path(),
    template: Annotated[str, typer.Option(metavar="NAME", help="torch, tensorflow, function, script, gpt, horovod, or a recipe's own name.")] = "torch",
    script: Annotated[Path | None, typer.Option("--from", metavar="SCRIPT", help="Write a recipe for this program instead.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Only list the templates.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write a recipe and a small task that run at once; nothing that is there is overwritten.

    Example: dtrain init --from train.py"""
    from dtrain.cli import starter

    if as_json and not list_them:
        raise UsageError("--json is for the list of templates", "Give --list, too.")
    if list_them and as_json:
        print(json.dumps(starter.templates(), indent=1))
    elif list_them:
        print("\n".join(f"{name:22} {text}" for name, text in starter.templates().items()))
    else:
        print(starter.write_for_script(script, folder) if script else starter.copy_template(template, folder))


def schema(
    of: Annotated[str | None, typer.Option(metavar="COMMAND", help="Of what this command prints with --json: ps, status, plan, rm …")] = None,
) -> None:  # fmt: skip
    """Print the JSON schema of recipes, for editors, or of what a command prints with --json.

    Example: dtrain schema > recipe.schema.json"""
    from dtrain.cli import json_schemas
    from dtrain.launch import recipe

    print(json.dumps(json_schemas.schema_of(of) if of else recipe.schema(), indent=1))


def explain(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="A key of a recipe, as section.key; without it, all sections.")] = None,
) -> None:  # fmt: skip
    """Say what a key of a recipe means, its type and default, with an example.

    Example: dtrain explain train.global_batch"""
    from dtrain.launch.explain import explain as explained

    print(explained(key or ""))
