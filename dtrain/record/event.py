"""Base classes of the events of a run, and the conversion of a line of the log to an event.

An event that is unknown or lacks a field becomes an `UnknownEvent`, so older and newer runs can be read. Times are seconds since
1970, durations are seconds.
"""

from __future__ import annotations

from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.message import Message, tagged, untagged
from dtrain.common.serde import JsonObject

TAG = "event"
FORMAT = 2
"""Format number of the event log and of the ledgers that belong to it, in each `RunStarted`; 1, or none: dtrain 0.1.0, whose events had other
names."""


@dataclass(frozen=True, kw_only=True)
class Event(Message):
    """Something that happened to a run."""

    time: float = 0.0
    """When it was logged; the event log sets it."""

    def to_dict(self) -> JsonObject:
        """As the log holds it: `time`, `event` (the name), then the fields."""
        return {"time": self.time} | tagged(self, TAG)


@dataclass(frozen=True, kw_only=True)
class AttemptEvent(Event):
    """Something that happened in an attempt; workers leave the number to the supervisor."""

    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """An event of another version of dtrain."""

    fields: JsonObject
    """As the log holds it."""

    def to_dict(self) -> JsonObject:
        """Return the line as it was read."""
        return self.fields


def from_log(fields: JsonObject) -> Event:
    """The event of one line of the log."""
    try:
        event = untagged(fields, TAG)
        if isinstance(event, Event) and not isinstance(event, UnknownEvent):
            return event
    except ValueError:
        pass
    time = fields.get("time")
    return UnknownEvent(time=float(time) if isinstance(time, int | float) else 0.0, fields=fields)
