"""Turns command line options into values that override a recipe."""

from __future__ import annotations

from typing import Any

from dtrain.common.errors import UsageError
from dtrain.launch import recipe

Overrides = list[tuple[tuple[str, ...], Any, str]]
"""Path in the recipe, value, and the option as it was typed."""


def of_options(
    *,
    gpus: int | None = None,
    workers: int | None = None,
    nodes: int | None = None,
    strategy: str | None = None,
    cluster: str | None = None,
    name: str | None = None,
    seed: int | None = None,
    env: list[str] | None = None,
    args: list[str] | None = None,
    tags: list[str] | None = None,
    note: str | None = None,
    sets: list[str] | None = None,
) -> Overrides:
    """The overrides that these options stand for; raises `UsageError` if they contradict each other."""
    given: Overrides = []
    if gpus is not None and workers is not None:
        raise UsageError("--gpus and --workers both say how many workers there are", "Give one of them.")
    if gpus is not None:
        given += [
            (("resources", "workers"), gpus, f"--gpus {gpus}"),
            (("resources", "device"), "gpu", f"--gpus {gpus}"),
        ]
    options = (
        (("resources", "workers"), workers),
        (("resources", "nodes"), nodes),
        (("strategy",), strategy),
        (("cluster",), cluster),
        (("name",), name),
        (("train", "seed"), seed),
        (("note",), note),
    )
    for path, value in options:
        if value is not None:
            given.append((path, value, f"--{path[-1]} {value}"))
    if args:
        given.append((("args",), list(args), f"-- {' '.join(args)}"))
    given += [_named("env", text) for text in env or []]
    given += [_named("tag", text) for text in tags or []]
    # Last, since they may be options of the strategy or cluster that was named.
    return given + [recipe.override(text) for text in sets or []]


FORMS = {
    "env": ("env", "NAME=VALUE", "OMP_NUM_THREADS=2"),
    "tag": ("tags", "KEY=VALUE", "dataset=v2"),
}
"""Option → the section of the recipe that it writes to, its form and an example."""


def _named(option: str, text: str) -> recipe.Override:
    """Take apart a `--env NAME=VALUE` or `--tag KEY=VALUE`; raises `UsageError` if it is not of that form."""
    section, form, example = FORMS[option]
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UsageError(f"--{option} {text}: not of the form {form}", f"For example: --{option} {example}")
    return (section, name), value, f"--{option} {name}"
