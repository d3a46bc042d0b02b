"""`dtrain plugins`: what is installed, and what is missing for it on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.common.errors import UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.launch import registry


@dataclass(frozen=True)
class PluginRow:
    """A plugin in the list."""

    kind: str
    name: str
    package: str
    """The distribution that it comes from."""
    ready: bool
    note: str
    """A description, or what is missing for it."""


def plugin_rows() -> list[PluginRow]:
    """Installed plugins, with what is missing for them."""
    return [_row(kind, name) for kind in registry.GROUPS for name in registry.installed(kind)]


def _row(kind: registry.Kind, name: str) -> PluginRow:
    point = registry.installed(kind)[name]
    package = point.dist.name if point.dist else ""
    try:
        plugin = registry.plugin_class(kind, name)
    except UsageError as error:
        return PluginRow(kind, name, package, ready=False, note=error.message)
    missing = registry.missing_for(kind, name)
    note = missing or ((plugin.__doc__ or "").strip().splitlines() or [""])[0]
    return PluginRow(kind, name, package, ready=not missing, note=note)


def plugin_text(rows: Sequence[PluginRow]) -> str:
    """Format the table of plugins."""
    width = max((len(row.name) for row in rows), default=0)
    return "\n".join(
        f"{row.kind:9}  {row.name:{width}}  {'ready  ' if row.ready else 'MISSING'}  {row.note}  [{row.package}]"
        for row in rows
    )
