"""`dtrain completion`: what a shell asks when a person presses Tab. The names of commands and options are typer's to tell."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from dtrain.common import environment

VARIABLE = "_DTRAIN_COMPLETE"
"""Set by the shell's function when it asks; see `typer.completion`."""


class Shell(str, Enum):
    """Shells that completion is known for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def add_to(app: typer.Typer) -> None:
    """Register the command."""

    @app.command()
    def completion(shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish")]) -> None:
        """Print what makes Tab complete commands, run ids, and keys of recipes after --set.

        Example, for this terminal or in ~/.bashrc: eval "$(dtrain completion bash)"; in fish: dtrain completion fish | source"""
        print(_typers().get_completion_script(prog_name="dtrain", complete_var=VARIABLE, shell=shell.value))


def prepare() -> None:
    """Have typer answer a shell that asks, instead of running a command."""
    if VARIABLE in os.environ:
        _typers().completion_init()


def _typers() -> Any:
    """typer's own part of this, which it does not list as public but documents."""
    return importlib.import_module("typer.completion")


def run_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Of the runs in the folder that `--runs` or DTRAIN_RUNS names, newest first."""
    from dtrain.record.folder import all_runs
    from dtrain.study.folder import all_studies

    runs = context.params.get("runs") or os.environ.get(environment.RUNS) or "runs"
    try:
        studies = [study.id for study in reversed(all_studies(Path(runs)))]
        known = [*studies, *(run.id for run in reversed(all_runs(Path(runs))))]
    except OSError:
        known = []
    return [name for name in ("last", *known) if name.startswith(incomplete)]


def settings(incomplete: str) -> list[str]:
    """Keys of a recipe with `=` behind them, and behind that the values that a key can have, where they are known."""
    from dtrain.launch.recipe import schema

    whole = schema()
    return [text for text in _settings(whole, whole, "") if text.startswith(incomplete)]


def plugins(kind: str) -> Any:
    """Return a completer of the names of strategies or clusters."""

    def names(incomplete: str) -> list[str]:
        from dtrain.launch import registry

        return [name for name in registry.installed(kind) if name.startswith(incomplete)]

    return names


def _settings(node: dict[str, Any], whole: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        key = f"{prefix}{name}"
        inner = False
        for form in child.get("anyOf", [child]):
            reference = form.get("$ref", "").rpartition("/")[2]
            resolved = whole["$defs"][reference] if reference else form
            for text in _settings(resolved, whole, f"{key}."):
                inner = True
                yield text
            yield from (f"{key}={value}" for value in resolved.get("enum", ()))
        if not inner and "const" not in child:
            yield f"{key}="
