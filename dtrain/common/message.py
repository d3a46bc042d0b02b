"""Messages: frozen dataclasses that are stored or sent as JSON objects, each tagged with the name of its class in snake case.

A reader tolerates what a newer version added: unknown fields are dropped, an unknown kind or a missing field is a `ValueError`.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import Any, ClassVar

from dtrain.common.serde import JsonObject, checked, from_dict, to_dict

KINDS: dict[str, type[Message]] = {}
"""Name on the wire → class."""


class OtherVersion(ValueError):
    """A message that another version of dtrain wrote."""


class Message:
    """A dataclass with a name on the wire; `was` is the name that older versions of dtrain wrote."""

    kind_name: ClassVar[str]
    former_name: ClassVar[str]

    def __init_subclass__(cls, *, was: str = "") -> None:
        cls.kind_name, cls.former_name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower(), was
        for name in filter(None, (cls.kind_name, was)):
            assert name not in KINDS, f"two messages are called {name!r}"
            KINDS[name] = cls


def tagged(message: Message, tag: str) -> JsonObject:
    """The message as plain data, with its name under `tag`."""
    return {tag: message.kind_name} | to_dict(message)


def untagged(body: Any, tag: str) -> Message:
    """The message of such an object; raises `OtherVersion` if it is unknown, lacks a field, or a field is of another type, `ValueError` for
    anything else."""
    if not isinstance(body, dict) or tag not in body:
        raise ValueError("not a message")
    kind = KINDS.get(str(body[tag]))
    if kind is None:
        raise OtherVersion(f"unknown: {body[tag]!r}")
    cls: Any = kind
    known = field_names(cls)
    try:
        message: Message = from_dict(cls, {name: value for name, value in body.items() if name in known})
        return checked(message)
    except (TypeError, AttributeError, ValueError, KeyError) as error:
        raise OtherVersion(f"{kind.kind_name}: {error}") from error


@cache
def field_names(kind: Any) -> frozenset[str]:
    """The fields of a dataclass."""
    return frozenset(one.name for one in dataclasses.fields(kind))
