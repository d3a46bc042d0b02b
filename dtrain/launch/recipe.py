"""Turns YAML and overrides into a `Job`: every mistake is reported at once, with file, line and column, and nothing
is started."""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dtrain.common.errors import UsageError, nearest
from dtrain.job.job import Job, PluginChoice
from dtrain.launch import planner, registry, target_recipe
from dtrain.launch import profiles as defaults
from dtrain.launch.yaml_source import Document, parse, scalar, unknown_key
from dtrain.launch.yaml_source import Path as Place

Override = tuple[tuple[str, ...], Any, str]
"""Path, value, and the option that gave it."""
PLUGIN_KINDS: tuple[registry.Kind, ...] = ("strategy", "cluster")
TYPED = ("resources", "train", "data", "checkpoint", "logs", "recovery", "strategy", "cluster", "track", "init_from")
"""Sections whose numbers have a type; those of `params` are the user's."""
OWN = frozenset({"folder", "filled"})
"""Fields of a job that dtrain sets."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def load(path: Path, overrides: Sequence[Override] = (), *, here: bool = True, runs: Path | None = None) -> Job:
    """The resolved job of a recipe file; raises `UsageError` that lists every mistake. Without `here`, this machine need not be
    able to start it. In the folder `runs`, runs that it names are looked for, and measurements that `strategy: auto` learns from.
    A script, a task or a function may stand for a recipe that runs it."""
    document, folder = read(path, overrides)
    return from_document(document, folder, overrides, here=here, runs=runs, profiles=True)


def read(path: Path, overrides: Sequence[Override] = ()) -> tuple[Document, Path]:
    """What is written in a recipe file, or in the recipe of a script, task or function that is named instead of one, and the folder that
    its paths begin at; raises `UsageError`."""
    if target_recipe.is_target(path):
        return target_recipe.document_of(path, [where[:2] for where, _, _ in overrides]), Path.cwd()
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", "Name a recipe file, for example recipes/digits_ddp.yaml."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}:1:1: not UTF-8 or UTF-16 text ({error.reason} at byte {error.start})") from None
    return parse(text, str(path)), path.absolute().parent


def from_document(
    document: Document, folder: Path, overrides: Sequence[Override] = (), *, here: bool = True, runs: Path | None = None,
    profiles: bool = False,
) -> Job:  # fmt: skip
    """The job of a parsed recipe; see `load`. With `profiles`, files of defaults fill in what it leaves out."""
    filled: tuple[str, ...] = ()
    if not document.problems:
        for where, value, source in overrides:
            document.put(where, value, source)
        if "name" not in document.data:
            document.data["name"] = Path(document.source).stem
        if profiles:
            filled = defaults.fill(document, folder)
    job, problems = _typed(document, folder)
    if job and not problems:
        job, found = planner.checked(job, here=here, runs=runs)
        problems = [
            (document.mark(problem.path), ".".join(map(str, problem.path)), problem.message) for problem in found
        ]
    problems = [(mark, "", text) for mark, text in document.problems] + problems
    if problems or job is None:
        ordered = sorted(problems, key=lambda problem: (problem[0].source, problem[0].line, problem[0].column))
        lines = (f"{mark}: {name + ': ' if name else ''}{text}" for mark, name, text in ordered)
        raise UsageError("\n".join(map(_printable, lines)))
    return dataclasses.replace(job, filled=filled) if filled else job


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def override(text: str) -> Override:
    """A `--set section.key=value`; raises `UsageError` if it is not of that form."""
    key, sign, value = text.partition("=")
    if not sign or not all(key.split(".")):
        raise UsageError(f"--set {text}: not of the form section.key=value", "For example: --set train.steps=500")
    path = tuple(key.strip().split("."))
    return path, scalar(value, path[0]), f"--set {text}"


def typed_options(cls: type, given: dict[str, Any], source: str) -> dict[str, Any]:
    """Options of a plugin that were typed on a command line, checked; raises `UsageError`."""
    try:
        return dataclasses.asdict(_adapter(cls).validate_json(json.dumps(_whole_numbers(given))))
    except ValidationError as error:
        lines = (
            f"{source} {item['loc'][-1]}: {_words(item['msg'], item.get('input'))}"
            for item in error.errors(include_url=False)
        )
        raise UsageError("\n".join(lines)) from None


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, with the options of every installed plugin."""
    result = _adapter(Job, docstrings=True).json_schema()
    definitions = result.setdefault("$defs", {})
    for key in OWN:
        result["properties"].pop(key)
    result["required"] = []
    properties = result["properties"]
    for kind in PLUGIN_KINDS:
        properties[kind] = {
            "anyOf": _forms(kind, definitions),
            "description": properties[kind].get("description", ""),
        }
    listed = {"type": "array", "items": {"anyOf": _forms("tracker", definitions)}}
    properties["track"] |= {"anyOf": [listed, {"type": "null"}]}
    definitions.pop("PluginChoice", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dtrain recipe"} | result


def _forms(kind: registry.Kind, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the forms that name a plugin of this kind: its name, or its name with its options."""
    forms: list[dict[str, Any]] = [{"type": "string", "enum": list(registry.installed(kind))}]
    for name in registry.installed(kind):
        options = _adapter(registry.plugin_class(kind, name).Options, docstrings=True).json_schema()
        definitions.update(options.pop("$defs", {}))
        forms.append(
            {
                "type": "object",
                "title": name,
                "properties": {"name": {"const": name}} | options.get("properties", {}),
                "required": ["name", *options.get("required", [])],
                "additionalProperties": False,
            }
        )
    return forms


@cache
def _adapter(cls: type, *, docstrings: bool = False) -> TypeAdapter[Any]:
    """pydantic's view of a dataclass; docstrings cost it a look at the source, and only the schema wants them."""
    # Strict holds for JSON too, but lets a mapping be a dataclass and a list a tuple.
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=docstrings)
    for part in _dataclasses_in(cls):
        part.__pydantic_config__ = config  # type: ignore[attr-defined]
    return TypeAdapter(cls)


def _dataclasses_in(cls: type) -> Iterator[type]:
    yield cls
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                yield from _dataclasses_in(part)


Found = list[tuple[Any, str, str]]
"""Mark, dotted name, message."""


def _typed(document: Document, folder: Path) -> tuple[Job | None, Found]:
    if document.problems:
        return None, []
    data = {key: _whole_numbers(value) if key in TYPED else value for key, value in document.data.items()}
    found: Found = []
    for kind in PLUGIN_KINDS:
        choice, problems = _choice(kind, data.get(kind, registry.default(kind)), document, (kind,))
        found += problems
        data[kind] = {"name": choice.name, "options": choice.options}
    if data.get("track") is not None:
        data["track"], problems = _track(data["track"], document)
        found += problems
    if (
        isinstance(data.get("script"), str)
        and len(words := data["script"].split()) > 1
        and not (folder / data["script"]).exists()
    ):
        found.append(
            (
                document.mark(("script",)),
                "script",
                f"there is no file '{data['script']}': give '{words[0]}' here and the rest in `args`",
            )
        )
    for key in OWN & data.keys():
        found.append((document.mark((key,)), key, unknown_key(key, _fields(Job))))
        del data[key]
    if not isinstance(data.get("name"), str) or not NAME.fullmatch(data["name"]):
        allowed = "1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        found.append((document.mark(("name",)), "name", f"{data['name']!r} cannot name a run: {allowed}"))
        data["name"] = "run"
    try:
        job = _adapter(Job).validate_json(json.dumps(data | {"folder": str(folder)}))
    except ValidationError as error:
        return None, found + _located(error, document, (), Job)
    return job, found


def _whole_numbers(value: Any) -> Any:
    """`20.0` and `2e1` as the whole numbers that they are, for keys whose type is known."""
    if isinstance(value, dict):
        return {key: _whole_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _track(value: Any, document: Document) -> tuple[list[dict[str, Any]] | None, Found]:
    """The trackers of a recipe, each named once."""
    if not isinstance(value, list):
        return None, [(document.mark(("track",)), "track", f"expected a list of trackers: track: [{value}]")]
    chosen: list[dict[str, Any]] = []
    found: Found = []
    for index, part in enumerate(value):
        choice, problems = _choice("tracker", part, document, ("track", index))
        found += problems
        if not problems and any(other["name"] == choice.name for other in chosen):
            found.append((document.mark(("track", index)), "track", f"the tracker '{choice.name}' stands here twice"))
        chosen.append({"name": choice.name, "options": choice.options})
    return chosen, found


def _choice(kind: registry.Kind, value: Any, document: Document, place: Place) -> tuple[PluginChoice, Found]:
    """A plugin and its options, from `ddp` or `{name: ddp, option: value}`."""
    name = value.get("name") if isinstance(value, dict) else value
    known = list(registry.installed(kind))
    path = (*place, "name") if isinstance(value, dict) and "name" in value else place
    key = ".".join(map(str, place))
    fallback = PluginChoice(known[0] if known else "")
    if name is None:
        return fallback, [(document.mark(path), key, f"is missing: one of {', '.join(known)}")]
    if not isinstance(name, str) or name not in known:
        return fallback, [(document.mark(path), key, f"unknown {kind} '{name}'. {nearest(str(name), known)}")]
    options = {option: part for option, part in value.items() if option != "name"} if isinstance(value, dict) else {}
    try:
        options_class = registry.plugin_class(kind, name).Options
        typed = _adapter(options_class).validate_json(json.dumps(options))
    except ValidationError as error:
        return fallback, _located(error, document, place, options_class)
    except UsageError as error:
        return fallback, [(document.mark(path), key, str(error))]
    return PluginChoice(name, dataclasses.asdict(typed)), []


def _fields(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if cls is not Job or field.name not in OWN]


def _class_at(cls: type, path: Sequence[str | int]) -> type | None:
    """The dataclass that a path of field names leads to."""
    for part in path:
        hint = typing.get_type_hints(cls).get(str(part))
        inner = next(
            (arg for arg in (hint, *typing.get_args(hint)) if isinstance(arg, type) and dataclasses.is_dataclass(arg)),
            None,
        )
        if inner is None:
            return None
        cls = inner
    return cls


def _located(error: ValidationError, document: Document, prefix: Place, cls: type) -> Found:
    """pydantic's errors, each once, in our words and with their place in the file."""
    found: dict[tuple[Any, ...], tuple[Any, str, str]] = {}
    items = error.errors(include_url=False)
    forms = {one.__name__ for one in _dataclasses_in(cls)}
    of_mappings = {item["loc"][: item["loc"].index(form)] for item in items for form in forms & {*item["loc"]}}
    for item in items:
        if item["type"] == "string_type" and isinstance(item.get("input"), dict) and item["loc"][:-1] in of_mappings:
            continue  # the other form of the two is meant
        inner = tuple(part for part in item["loc"] if part != "options" and part not in forms)
        path = _marked_part((*prefix, *inner), document) or (*prefix, *inner[:1])
        if path in found:
            continue
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            owner = _class_at(cls, inner[:-1])
            text = _unknown(str(inner[-1]), owner, top=owner is Job and len(inner) == 1)
        elif item["type"] in ("missing", "missing_argument"):
            text = f"the key '{inner[-1]}' is missing"
        else:
            text = _words(item["msg"], item.get("input"))
        found[path] = (document.mark(path), ".".join(map(str, path)), text)
    return list(found.values())


def _marked_part(path: tuple[str | int, ...], document: Document) -> tuple[str | int, ...]:
    """The longest part of a path that has a place of its own; pydantic's paths also name the types of a union."""
    return next((path[:end] for end in range(len(path), 0, -1) if path[:end] in document.marks), ())


YAML_TERMS = {
    "an object": "a mapping (key: value)", "a valid dictionary": "a mapping (key: value)", "a valid array": "a list ([a, b])",
    "a valid list": "a list ([a, b])", "a valid boolean": "true or false", "a valid string": "text (in quotes if it looks like a number)",
}  # fmt: skip
"""pydantic's words for types of JSON → the words of YAML."""


def _words(message: str, value: Any) -> str:
    text = message[0].lower() + message[1:]
    for term, plain in YAML_TERMS.items():
        text = text.replace(term, plain)
    if isinstance(value, dict | list):
        return text
    shown = (
        {True: "true", False: "false", None: "null"}.get(value)
        if value is None or isinstance(value, bool)
        else repr(value)
    )
    return f"{text}, not {shown}"


def _unknown(key: str, owner: type | None, *, top: bool) -> str:
    """The message for a key that nobody reads; one that belongs into a section is told its place."""
    sections = {
        field.name: inner
        for field in dataclasses.fields(Job)
        if (inner := _class_at(Job, [field.name])) and inner is not PluginChoice
    }
    homes = [f"{section}.{key}" for section, inner in sections.items() if key in _fields(inner)] if top else []
    if homes:
        return f"unknown key '{key}'. Did you mean '{homes[0]}'?"
    return unknown_key(key, _fields(owner) if owner else [])
