"""Frozen dataclasses to plain data and back, for JSON."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

JsonObject = dict[str, Any]
"""An object of JSON, as it stands in a file or on the wire; the values of its keys are checked when it is read."""
T = TypeVar("T")
Decoder = Callable[[Any], Any]
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
    """The frozen dataclass that `to_dict` wrote; unknown keys are an error of ours, not the user's (`TypeError`)."""
    anything: Any = cls
    typed = {name: decode(data[name]) for name, decode in _field_decoders(anything) if name in data}
    return cls(**(data | typed))


@cache
def _field_decoders(cls: Any) -> tuple[tuple[str, Decoder], ...]:
    """How to decode those fields of a dataclass that are not plain values."""
    decoders = ((name, _decoder(hint)) for name, hint in typing.get_type_hints(cls).items())
    return tuple((name, decode) for name, decode in decoders if decode)


def _decoder(hint: Any) -> Decoder | None:
    """Return a function from plain data to a value of this type; None if they are the same."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        decoders = [decode for part in typing.get_args(hint) if part is not type(None) and (decode := _decoder(part))]
        return _unless_plain(decoders[0]) if decoders else None
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value: from_dict(hint, value) if isinstance(value, dict) else value
    if typing.get_origin(hint) is tuple:
        return _of_elements(_decoder(typing.get_args(hint)[0]))
    if typing.get_origin(hint) is dict:
        return _of_values(_decoder(typing.get_args(hint)[1]))
    return None


def checked(value: T) -> T:
    """The same dataclass, if every field holds what its annotation says; raises `TypeError` otherwise."""
    kind: Any = type(value)
    for name, fits in _field_checks(kind):
        if not fits(getattr(value, name)):
            raise TypeError(f"{name} is not what it should be")
    return value


Check = Callable[[Any], bool]


@cache
def _field_checks(cls: Any) -> tuple[tuple[str, Check], ...]:
    return tuple((name, _check(hint)) for name, hint in typing.get_type_hints(cls).items() if name in _names(cls))


@cache
def _names(cls: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls))


def _check(hint: Any) -> Check:
    """Return a function that says whether a value fits a type; an int is a float, too, and a list a tuple."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: True
    if origin is typing.Annotated:
        return _check(parts[0])
    if origin is typing.Literal:
        return lambda value: value in parts
    if origin in (typing.Union, types.UnionType):
        checks = tuple(map(_check, parts))
        return lambda value: any(fits(value) for fits in checks)
    if origin in (tuple, list, collections.abc.Sequence):
        elements = [part for part in parts if part is not ...]
        if len(elements) == 1:
            element = _check(elements[0])
            return lambda value: isinstance(value, list | tuple) and all(map(element, value))
        each = tuple(map(_check, elements))
        return lambda value: (
            isinstance(value, list | tuple)
            and len(value) == len(each)
            and all(fits(one) for fits, one in zip(each, value, strict=True))
        )
    if origin in (dict, collections.abc.Mapping):
        key, element = map(_check, parts)
        return lambda value: isinstance(value, dict) and all(map(key, value)) and all(map(element, value.values()))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value: isinstance(value, hint) and all(fits(getattr(value, n)) for n, fits in _field_checks(hint))
    if hint is float:
        return lambda value: isinstance(value, int | float)
    return (lambda value: isinstance(value, hint)) if isinstance(hint, type) else lambda value: True


def _unless_plain(decode: Decoder) -> Decoder:
    return lambda value: decode(value) if isinstance(value, dict | list) else value


def _of_elements(decode: Decoder | None) -> Decoder:
    return (lambda value: tuple(map(decode, value))) if decode else tuple


def _of_values(decode: Decoder | None) -> Decoder | None:
    return (lambda value: {key: decode(one) for key, one in value.items()}) if decode else None
