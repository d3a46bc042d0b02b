"""`dtrain plugins`: what is installed, and what is missing for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from dtrain.common.errors import UsageError
from dtrain.launch import registry


def plugin_rows() -> list[dict[str, Any]]:
    """Installed plugins, with what is missing for them."""
    return list(_rows_of("strategy")) + list(_rows_of("cluster"))


def _rows_of(kind: registry.Kind) -> Iterator[dict[str, Any]]:
    for name, point in registry.installed(kind).items():
        item: dict[str, Any] = {
            "kind": kind,
            "name": name,
            "from": point.dist.name if point.dist else "",
            "ready": True,
            "note": "",
        }
        try:
            plugin = registry.plugin_class(kind, name)
        except UsageError as error:
            item |= {"ready": False, "note": error.message}
        else:
            item["note"] = (plugin.__doc__ or "").strip().splitlines()[0] if plugin.__doc__ else ""
            framework = getattr(plugin, "framework", None)
            if framework and importlib.util.find_spec(framework) is None:
                item |= {"ready": False, "note": f"needs {framework}: pip install 'dtrain[{framework}]'"}
        yield item


def plugin_text(rows: list[dict[str, Any]]) -> str:
    """Plugins for reading."""
    width = max((len(item["name"]) for item in rows), default=0)
    return "\n".join(
        f"{item['kind']:8}  {item['name']:{width}}  {'ready  ' if item['ready'] else 'MISSING'}  {item['note']}  [{item['from']}]"
        for item in rows
    )
