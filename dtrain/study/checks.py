"""Looks at a study before it begins: whether the recipe can have every key and value that is tried."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

from dtrain.common.errors import UsageError
from dtrain.launch import recipe, tuning
from dtrain.launch.recipe import Override
from dtrain.launch.yaml_source import Document


def _values_of(document: Document, over: dict[str, object]) -> list[list[Override]]:
    """Overrides for each key of `tune.over`, one for each of the values that a recipe is checked with."""
    return [
        [(tuple(key.split(".")), example, str(document.mark(("tune", "over", key)))) for example in domain.examples()]
        for key, domain in ((key, tuning.domain(value)) for key, value in over.items())
    ]


def check_values(document: Document, folder: Path, runs: Path, over: dict[str, object]) -> None:
    """Raise `UsageError` for a key that the recipe cannot have, or a value that it cannot have there: the first values of all keys
    together, and each other value among them."""
    keys = _values_of(document, over)
    first = [values[0] for values in keys]
    tried = [first, *([*first[:at], one, *first[at + 1 :]] for at, values in enumerate(keys) for one in values[1:])]
    found: dict[str, None] = {}
    for chosen in tried:
        try:
            recipe.from_document(_fresh(document), folder, chosen, here=False, runs=runs)
        except UsageError as error:
            found |= dict.fromkeys(str(error).split("\n"))
    if found:
        raise UsageError("\n".join(itertools.islice(found, 20)))


def _fresh(document: Document) -> Document:
    """A copy that can be changed."""
    return copy.deepcopy(document)
