"""Hypothesis strategies from a recipe's JSON schema: values of the schema's shape, and now and then anything else."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2)
)
WORDS = st.text(st.characters(codec="utf-8"), max_size=12)


def from_schema(node: dict[str, Any], whole: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a node of the schema allows; one in about ten is of another type."""
    fitting = _fitting(node, whole)
    return st.integers(0, 9).flatmap(lambda number: fitting if number else ANYTHING)


def _fitting(node: dict[str, Any], whole: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "$ref" in node:
        return _fitting(whole["$defs"][node["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in node:
        return st.one_of([_fitting(form, whole) for form in node["anyOf"]])
    if "const" in node or "enum" in node:
        return st.sampled_from(node.get("enum") or [node["const"]])
    kind = node.get("type")
    if kind == "object" and "properties" in node:
        required = node.get("required", [])
        parts = {name: from_schema(child, whole) for name, child in node["properties"].items()}
        return st.fixed_dictionaries(
            {name: part for name, part in parts.items() if name in required},
            optional={name: part for name, part in parts.items() if name not in required},
        )
    if kind == "object":
        return st.dictionaries(WORDS, ANYTHING, max_size=2)
    if kind == "array":
        return st.lists(from_schema(node.get("items", {}), whole), max_size=2)
    scalars: dict[str | None, st.SearchStrategy[Any]] = {
        "integer": st.integers(1, 64) | st.integers(),
        "number": st.floats(0.1, 100) | st.floats(),
        "boolean": st.booleans(),
        "string": WORDS | st.sampled_from(["tiny.py:Tiny", "tiny.py", "s3://bucket/runs"]),
        "null": st.none(),
    }
    return scalars.get(kind, ANYTHING)
