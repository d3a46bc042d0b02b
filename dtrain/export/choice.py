"""Chooses the exporter, before anything is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dtrain.api.exporter import Exporter, Layout
from dtrain.common.errors import UsageError, nearest
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject
from dtrain.launch import recipe, registry
from dtrain.weights.source import SavedWeights

ARCHIVED = {"torchserve": "its repository was archived in August 2025, without security patches"}
"""Servers that people ask for and that nobody should begin with."""


@dataclass(frozen=True)
class Form:
    """An exporter with its options."""

    name: str
    ending: str
    options: JsonObject


def exporter(saved: SavedWeights, name: str | None, layout: str | None, sets: Sequence[str]) -> Form:
    """The exporter for a run's model; raises `UsageError` for one that does not take it, or that lacks something here."""
    framework = saved.framework.framework
    takes = [
        one for one in registry.installed("exporter") if framework in registry.plugin_class("exporter", one).frameworks
    ]
    if layout is not None:
        name = _of_layout(layout, name, framework)
    if name is None:
        raise UsageError("--to is missing", f"For {framework}: {', '.join(takes)}.")
    chosen: Exporter = registry.plugin_class("exporter", name)
    if framework not in chosen.frameworks:
        raise UsageError(
            f"{name} takes models of {' and '.join(chosen.frameworks)}, and {saved.run.id} trained with {framework}",
            f"For {framework}: {', '.join(takes)}.",
        )
    if text := registry.missing_for("exporter", name):
        raise UsageError(f"{name} {text}")
    return Form(name, chosen.ending, _options(chosen, name, sets))


def _of_layout(layout: str, name: str | None, framework: str) -> str:
    if (why := ARCHIVED.get(layout.replace("-", "").lower())) is not None:
        raise UsageError(f"--layout {layout}: {why}", f"Take one of: {', '.join(registry.installed('layout'))}.")
    chosen: Layout = registry.plugin_class("layout", layout)
    if name is None:
        if framework not in chosen.default:
            served = ", ".join(chosen.default)
            raise UsageError(
                f"{layout} serves models of {served}, and this run trained with {framework}",
                "Export to onnx for others.",
            )
        return chosen.default[framework]
    if name not in chosen.formats:
        raise UsageError(f"{layout} does not serve {name}. {nearest(name, list(chosen.formats))}")
    return name


def _options(chosen: Any, name: str, sets: Sequence[str]) -> JsonObject:
    """Typed as the exporter says."""
    given = {}
    for text in sets:
        path, value, _ = recipe.override(text)
        given[".".join(path)] = value
    known = [field.name for field in dataclasses.fields(chosen.Options)]
    for key in given:
        if key not in known:
            hint = nearest(key, known) if known else f"{name} has no options."
            raise UsageError(f"--set {key}: {name} does not know it. {hint}")
    return recipe.typed_options(chosen.Options, given, "--set")
