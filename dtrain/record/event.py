"""What all events of a run have in common, and how a line of the log becomes one.

A reader tolerates what it does not know: fields that a newer version added are dropped, and an event that is unknown or lacks a
field becomes an `UnknownEvent`, so older and newer runs can be read. Times are seconds since 1970, durations are seconds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from dtrain.common.serde import JsonObject, from_dict

KINDS: dict[str, type[Event]] = {}
"""Name of an event in the log → its class."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run."""

    name: ClassVar[str] = ""
    time: float = 0.0
    """When it was logged; the event log sets it."""

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        KINDS[name] = cls

    def to_dict(self) -> JsonObject:
        """As the log holds it: `time`, `event` (the name), then the fields."""
        fields = dataclasses.asdict(self)
        return {"time": fields.pop("time"), "event": self.name} | fields


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event, name=""):
    """An event of another version of dtrain."""

    fields: JsonObject
    """As the log holds it."""

    def to_dict(self) -> JsonObject:
        """As it was read."""
        return self.fields


def from_log(fields: JsonObject) -> Event:
    """The event of one line of the log."""
    kind: Any = KINDS.get(fields.get("event") or "", UnknownEvent)
    known = _fields(kind)
    try:
        event: Event = from_dict(kind, {name: value for name, value in fields.items() if name in known})
        return event
    except (TypeError, ValueError, AttributeError):
        time = fields.get("time")
        return UnknownEvent(time=float(time) if isinstance(time, int | float) else 0.0, fields=fields)


@cache
def _fields(kind: Any) -> frozenset[str]:
    return frozenset(one.name for one in dataclasses.fields(kind))
