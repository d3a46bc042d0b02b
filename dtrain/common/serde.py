"""Frozen dataclasses to plain data and back, for JSON."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Any, TypeVar

JsonObject = dict[str, Any]
"""An object of JSON, as it stands in a file or on the wire; the values of its keys are checked when it is read."""
T = TypeVar("T")
SCALARS = (str, int, float, bool, type(None))
PLAIN = frozenset(SCALARS)


def to_dict(value: Any) -> JsonObject:
    """A frozen dataclass as plain data for JSON."""
    plain: dict[str, Any] = _encode(value)
    return plain


def _encode(value: Any) -> Any:
    """As `dataclasses.asdict`, but long rows of plain values (the addresses of all ranks) are not copied one by one."""
    if isinstance(value, SCALARS):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _encode(part) for key, part in value.items()}
    if isinstance(value, tuple) and {type(part) for part in value} <= PLAIN:
        return value
    return type(value)(_encode(part) for part in value) if isinstance(value, list | tuple) else value


def from_dict(cls: type[T], data: JsonObject) -> T:
    """The frozen dataclass that `to_dict` wrote; unknown keys are an error of ours, not the user's."""
    anything: Any = cls
    hints: dict[str, Any] = _hints(anything)
    return cls(**{name: _decode(hints[name], value) for name, value in data.items()})


def _decode(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next((part for part in typing.get_args(hint) if dataclasses.is_dataclass(part)), None)
    if isinstance(value, dict) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_decode(item, element) for element in value)
    if typing.get_origin(hint) is dict:
        item = typing.get_args(hint)[1]
        return {key: _decode(item, element) for key, element in value.items()}
    return value


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
