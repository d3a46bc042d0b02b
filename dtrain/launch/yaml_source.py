"""Reads YAML as plain data, with the line and column of every part; never anything but data."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any

import yaml

from dtrain.common.errors import nearest
from dtrain.common.lazy_dataclass import dataclass

Path = tuple[str | int, ...]
MOST_NODES = 10_000
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
"""`1e-3`, which YAML 1.1 takes for text."""
MOST_DIGITS = 100
VERBATIM = ("args",)
"""Key whose numbers reach a program as they are written: 3.10, 010 and 12e5 mean something to it."""
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
LINE_BREAKS = re.compile("[\u0085\u2028\u2029]")
"""Characters that YAML 1.1 takes for the end of a line, and editors do not."""
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")
}


@dataclass(frozen=True)
class Mark:
    """Where something stands: a file with line and column from 1, or the command line option that gave it."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass()
class Document:
    """A YAML file's data, the place of every key, and what is wrong with it as YAML."""

    source: str
    data: dict[str, Any] = field(default_factory=dict)
    marks: dict[Path, Mark] = field(default_factory=dict)
    problems: list[tuple[Mark, str]] = field(default_factory=list)

    def mark(self, path: Path) -> Mark:
        """The place of this part, or of the nearest part around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return Mark(self.source, 1, 1)

    def put(self, path: tuple[str, ...], value: Any, source: str) -> None:
        """Set a value from outside the file, making the mappings on the way; the name of a plugin that the file names too
        leaves its options as they are."""
        place = self.data
        known = place.get(path[0])
        if isinstance(known, dict) and path[0] in ("strategy", "cluster"):
            if path[1:] in ((), ("name",)) and known.get("name") == value:
                return
            if path[1:] == ("name",):  # the options are another plugin's
                path, value = path[:1], {"name": value}
        for depth, part in enumerate(path[:-1]):
            inner = place.get(part)
            if isinstance(inner, str) and depth == 0 and part in ("strategy", "cluster"):
                inner = {"name": inner}
            place[part] = inner if isinstance(inner, dict) else {}
            place = place[part]
        place[path[-1]] = value
        for end in range(1, len(path)):
            self.marks.setdefault(path[:end], Mark(source))
        self.marks[path] = Mark(source)


def parse(text: str, source: str) -> Document:
    """Read YAML; whatever is wrong with it becomes a problem with a place, never an exception."""
    document = Document(source)
    try:
        root = yaml.compose(_whole_comments(text), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Mark(source, mark.line + 1, mark.column + 1) if mark else Mark(source, 1, 1)
        document.problems.append((place, f"not valid YAML: {error.problem or error.context}"))
        return document
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        document.problems.append((Mark(source, 1, 1), f"not valid YAML: {' '.join(str(error).split())}"))
        return document
    if root is None:
        document.problems.append((Mark(source, 1, 1), "the recipe is empty"))
    elif not isinstance(root, yaml.MappingNode):
        document.problems.append((_place(root, source), "a recipe is a mapping of keys to values"))
    else:
        document.data = _Builder(document).value(root, (), ())
    return document


def _whole_comments(text: str) -> str:
    """Keep comments whole that hold a line break which no editor shows as one."""
    if not LINE_BREAKS.search(text):
        return text
    lines = []
    for line in text.split("\n"):
        before, sign, comment = line.partition("#")
        quoted = before.count("'") % 2 or before.count('"') % 2
        lines.append(line if quoted else before + sign + LINE_BREAKS.sub(" ", comment))
    return "\n".join(lines)


def scalar(text: str, section: str) -> Any:
    """The value of a `--set` of a key in this section, read as YAML; text that is no YAML is itself."""
    key = section if section in VERBATIM else "value"
    document = parse(f"{key}: {text}", "--set")
    return text if document.problems else document.data.get(key, text)


def _is_number(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and (
        node.tag in NUMBER_TAGS or (node.style is None and bool(EXPONENT.fullmatch(str(node.value))))
    )


def _place(node: yaml.Node, source: str) -> Mark:
    return Mark(source, node.start_mark.line + 1, node.start_mark.column + 1)


def _is_open(mapping: dict[str, Any]) -> bool:
    """Whether the last value is a call that its comma has torn apart: `{key: log(1, 2)}` is two keys for YAML."""
    last = mapping[list(mapping)[-1]] if mapping else None
    return isinstance(last, str) and last.count("(") > last.count(")")


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.value


class _Builder:
    """Turns nodes into data, with an eye on aliases that multiply or bite their own tail."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.constructor = yaml.SafeLoader("")
        self.count = 0

    def problem(self, node: yaml.Node, text: str) -> None:
        self.document.problems.append((_place(node, self.document.source), text))

    def value(self, node: yaml.Node, path: Path, above: tuple[yaml.Node, ...]) -> Any:
        self.count += 1
        if self.count == MOST_NODES:
            self.problem(node, f"more than {MOST_NODES} values, aliases counted: this is no recipe")
        if self.count >= MOST_NODES:
            return None
        if any(node is outer for outer in above) or len(above) > 50:
            self.problem(node, "nested too deeply, or an alias that contains itself")
            return None
        if node.tag not in PLAIN_TAGS:
            self.problem(
                node, f"cannot read this value ({node.tag}): a recipe holds text, numbers, true, false and null"
            )
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, (*above, node))
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.document.marks[(*path, index)] = _place(item, self.document.source)
                items.append(self.value(item, (*path, index), (*above, node)))
            return items
        if len(path) > 1 and path[0] in VERBATIM and _is_number(node):
            return str(node.value)
        return self.leaf(node)

    def leaf(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            text = str(node.value)
            if EXPONENT.fullmatch(text):
                return float(text)
            if node.tag in NUMBER_TAGS and ":" in text:
                self.problem(
                    node, f"YAML reads {text} as a number to the base 60: write '{text}' in quotes, or a plain number"
                )
                return None
            if len(text) > MOST_DIGITS and node.tag in NUMBER_TAGS:
                self.problem(node, f"a number of {len(text)} characters: this is no recipe")
                return None
        try:
            value = self.constructor.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError, KeyError) as error:
            self.problem(node, f"cannot read this value: {error}")
            return None
        if value is None or isinstance(value, str | int | float | bool):
            return value
        return str(node.value)

    def mapping(self, node: yaml.MappingNode, path: Path, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, "a key must be a plain word")
                continue
            key = str(key_node.value)
            if node.flow_style and _is_open(result) and _is_nothing(value_node):
                result[list(result)[-1]] += f", {key}"
                continue
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.problem(
                    key_node, "merge keys (<<) are not read: write the keys out, or use an alias for a whole value"
                )
                continue
            if key in result:
                self.problem(key_node, f"the key '{key}' stands here twice")
                continue
            self.document.marks[(*path, key)] = _place(key_node, self.document.source)
            result[key] = self.value(value_node, (*path, key), above)
        return result


def unknown_key(key: str, valid: list[str]) -> str:
    """The message for a key that nobody reads."""
    return f"unknown key '{key}'. {nearest(key, valid)}"
