"""`dtrain explain KEY`: the meaning, type, default and an example of a recipe's key, from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator

from dtrain.common.errors import UsageError, nearest
from dtrain.common.serde import JsonObject
from dtrain.launch.recipe import schema

MEANT = {
    "amp": ("strategy.precision",),
    "batch_size": ("train.global_batch", "train.micro_batch"),
    "fp16": ("strategy.precision",),
    "bf16": ("strategy.precision",),
    "gpu": ("resources.workers", "resources.device"),
    "gpus": ("resources.workers", "resources.device"),
    "gradient_accumulation": ("train.accumulate", "train.micro_batch", "train.shards"),
    "learning_rate": ("params",),
    "lr": ("params",),
    "mixed_precision": ("strategy.precision",),
    "timeout": ("recovery.hang_seconds", "recovery.provision_seconds"),
}
"""Words of other programs → the keys that do that here."""
EMPTY = {"object": "{}", "array": "[]"}
EXAMPLES = {"integer": 2, "number": 0.5, "boolean": True, "string": "text", "array": [], "object": {}}


def explain(key: str) -> str:
    """Everything that is known of a key; for a section, all of its keys. Raises `UsageError` for an unknown key."""
    whole = schema()
    node, path, needed = whole, list[str](), False
    for part in key.split(".") if key else []:
        choices = _properties(node, whole)
        if part not in choices:
            return _meant(key, part, path, list(choices), whole)
        needed = any(part in form.get("required", []) for form in _forms(node, whole))
        node = _resolved(choices[part], whole)
        path.append(part)
    lines = [key or "a recipe", *(f"  {line}" for line in _text(node).splitlines())]
    inner = _properties(node, whole)
    for name, child in inner.items():
        child = _resolved(child, whole)
        first = (_text(child).splitlines() or [""])[0]
        lines.append(f"    {name:18} {first}")
    if not inner or ("default" in node and not isinstance(node["default"], dict)):
        lines += [
            f"  type     {_type(node, whole)}",
            f"  default  {_default(node, needed=needed)}",
            f"  example  {_example(path, node, whole)}",
        ]
    return "\n".join(lines)


def every_key() -> list[str]:
    """Return every key of a recipe, a section before the keys in it."""
    whole = schema()
    return [name for name, _ in _all_keys(whole, whole)]


def _meant(key: str, part: str, path: list[str], choices: list[str], whole: JsonObject) -> str:
    """The keys that a word may mean: those that end with it, or that are known by it elsewhere. Raises `UsageError` if there are none."""
    texts = {} if path else dict(_all_keys(whole, whole))
    ends = [name for name in texts if name.rpartition(".")[2] == part]
    found = [*ends, *(name for name in MEANT.get(part, ()) if name in texts)]
    if len(found) == 1:
        return explain(found[0])
    if found:
        width = max(map(len, found))
        return "\n".join([f"{key} may mean:", *(f"    {name:{width}}  {texts[name]}" for name in found)])
    where = f" in {'.'.join(path)}" if path else ""
    raise UsageError(f"no key '{part}'{where}. {nearest(part, choices)}")


def _all_keys(node: JsonObject, whole: JsonObject, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, first line of its text) of every key below a node."""
    for name, child in _properties(node, whole).items():
        child = _resolved(child, whole)
        yield f"{prefix}{name}", (_text(child).splitlines() or [""])[0]
        yield from _all_keys(child, whole, f"{prefix}{name}.")


def _resolved(node: JsonObject, whole: JsonObject) -> JsonObject:
    """A schema with its references followed; its own description and default win."""
    while "$ref" in node:
        target = whole["$defs"][node["$ref"].rpartition("/")[2]]
        node = target | {name: value for name, value in node.items() if name != "$ref"}
    return node


def _forms(node: JsonObject, whole: JsonObject) -> list[JsonObject]:
    return [_resolved(form, whole) for form in node.get("anyOf", [node])]


def _properties(node: JsonObject, whole: JsonObject) -> dict[str, JsonObject]:
    """Keys below a node; of a plugin, those of all plugins of its kind."""
    found: dict[str, JsonObject] = {}
    forms = [form for form in _forms(node, whole) if form.get("type") != "null"]
    listed = [inner for form in forms if "items" in form for inner in _forms(form["items"], whole)]
    forms = [*(form for form in forms if "items" not in form), *listed]
    several = sum("properties" in form for form in forms) > 1
    for form in forms:
        title = form.get("title", "")
        for name, child in form.get("properties", {}).items():
            child = _resolved(child, whole)
            if "const" in child:
                continue
            text = child.get("description", "")
            found.setdefault(name, child | ({"description": f"({title}) {text}"} if several else {}))
    return found


def _text(node: JsonObject) -> str:
    return str(node.get("description", ""))


def _type(node: JsonObject, whole: JsonObject) -> str:
    return " or ".join(dict.fromkeys(_one_type(form) for form in _forms(node, whole)))


def _one_type(form: JsonObject) -> str:
    if "enum" in form:
        return " or ".join(map(str, form["enum"]))
    bounds = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    limits = ", ".join(f"{text} {form[name]:g}" for name, text in bounds.items() if name in form)
    return f"{form.get('type', form.get('title', 'anything'))}{f' {limits}' if limits else ''}"


def _default(node: JsonObject, *, needed: bool) -> str:
    if "default" in node:
        return json.dumps(node["default"])
    return "none: it must be given" if needed else EMPTY.get(str(node.get("type")), "none")


def _example(path: list[str], node: JsonObject, whole: JsonObject) -> str:
    """Format one line of YAML that sets the key."""
    text = f"{path[-1]}: {_example_value(node, whole)}"
    for part in reversed(path[:-1]):
        text = f"{part}: {{{text}}}"
    return text


def _example_value(node: JsonObject, whole: JsonObject) -> str:
    """A value that the key can have, in YAML; of an object, what must be given."""
    value = node.get("default")
    if value in (None, [], {}, ""):
        form = next((form for form in _forms(node, whole) if form.get("type") != "null"), {})
        if required := form.get("required", []):
            children = {name: _resolved(form["properties"][name], whole) for name in required}
            return "{" + ", ".join(f"{name}: {_example_value(child, whole)}" for name, child in children.items()) + "}"
        value = form["enum"][0] if "enum" in form else EXAMPLES.get(str(form.get("type")), "…")
    return json.dumps(value, ensure_ascii=False)
