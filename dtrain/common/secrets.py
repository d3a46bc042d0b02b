"""Keeping secrets out of what is printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
HIDDEN = "***"
CREDENTIALS = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
"""User and password in a URL."""
PRIVATE_KEYS = ("env", "storage.options", "notify")
"""Keys of a job whose values may hold secrets, whatever their names: they are shown and sent to nobody."""


def redacted(values: Mapping[str, str]) -> dict[str, str]:
    """The same mapping with the values of names that sound like secrets hidden."""
    return {name: HIDDEN if SECRET.search(name) and value else value for name, value in values.items()}


def recipe_without_secrets(text: str) -> str:
    """Return the text of a recipe with the values under `PRIVATE_KEYS`, and the comments among them, hidden; '' if it is no YAML."""
    import yaml  # few processes need it

    try:
        document = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return ""
    found = [node for key in PRIVATE_KEYS if (node := _at(document, key.split("."))) is not None]
    for node in sorted(found, key=lambda node: -node.start_mark.index):
        begin, end = node.start_mark.index, node.end_mark.index
        text = text[:begin] + _hidden(node) + ("\n" if text[begin:end].endswith("\n") else "") + text[end:]
    return CREDENTIALS.sub(f"://{HIDDEN}@", text)


def _at(node: Any, path: list[str]) -> Any:
    for name in path:
        pairs = node.value if getattr(node, "id", "") == "mapping" else ()
        node = next((value for key, value in pairs if key.value == name), None)
    return node


def _hidden(node: Any) -> str:
    """The keys of a node, without its values."""
    if node.id != "mapping" or not node.value:
        return HIDDEN
    if node.flow_style:
        return "{" + ", ".join(f"{key.value}: {HIDDEN}" for key, _ in node.value) + "}"
    indent = " " * node.start_mark.column
    return f"\n{indent}".join(f"{key.value}: {HIDDEN}" for key, _ in node.value)
