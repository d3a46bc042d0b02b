"""PyTorch's Flight Recorder: the variables that have NCCL's process groups record their collectives, and what the records of a hang say.

Importing this module imports no framework. The format is that of `torch.distributed.flight_recorder` (versions 2.x of the record).
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from dtrain.api.strategy import RECORD_FILE, RECORD_PIPE, RecordedHang
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.ranks import ranks

COLLECTIVES_KEPT = "500"
"""The newest ones of a rank, about 300 kB; torch's own tools suggest 2,000, with stacks."""
DEFAULT_GROUP = ("0", "")
"""Names of the default group in the records' list of groups, of NCCL and of gloo."""
SAME_SHAPES = ("all_reduce", "broadcast", "_all_gather_base", "_reduce_scatter_base")
"""Collectives in which the tensors of all ranks have one shape."""
TYPES = {
    "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Long": "int64", "Int": "int32", "Byte": "uint8",
}  # fmt: skip
MOST_BYTES = 64 << 20


def environment() -> dict[str, str]:
    """Return the variables for one rank; a setting of the user's own wins, also if it has an older name."""
    newest = _torch_version()
    size = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
    file = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    settings = (
        # torch warns of each older name that is set beside the new one.
        (size, size[newest < (2, 8)], COLLECTIVES_KEPT),
        (file, file[newest < (2, 9)], RECORD_FILE),
        (("TORCH_NCCL_DEBUG_INFO_PIPE_FILE",), "TORCH_NCCL_DEBUG_INFO_PIPE_FILE", RECORD_PIPE),
        (("TORCH_NCCL_DUMP_ON_TIMEOUT",), "TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
        # Reading the stacks needs Python's lock, which a rank that hangs may hold; dtrain has stacks of its own.
        (("TORCH_INCLUDE_STACK_TRACE",), "TORCH_INCLUDE_STACK_TRACE", "0"),
    )
    return {name: value for names, name, value in settings if not any(one in os.environ for one in names)}


def _torch_version() -> tuple[int, int]:
    """The newest known one where torch is not installed."""
    torch = sys.modules.get("torch")
    with suppress(importlib.metadata.PackageNotFoundError, ValueError):
        text = torch.__version__ if torch else importlib.metadata.version("torch")
        major, minor = str(text).split(".")[:2]
        return int(major), int(minor)
    return 99, 0


class _Plain(pickle.Unpickler):
    """Reads numbers, texts, lists and dictionaries: a record has nothing else, and a pickle with classes could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"a record of collectives names {module}.{name}")


@dataclass(frozen=True)
class _Call:
    """A collective as one rank recorded it."""

    name: str
    """Without the backend: all_reduce."""
    number: int
    """Of the collective in its group, from 1."""
    types: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    created: int
    pending: bool
    """Whether the rank waits for it."""

    def __str__(self) -> str:
        """`all_reduce number 3 (float32 [7])`."""
        tensors = ", ".join(
            f"{TYPES.get(kind, kind)} {list(shape)}" for kind, shape in zip(self.types, self.shapes, strict=False)
        )
        return f"{self.name} number {self.number}" + (f" ({tensors})" if tensors else "")


@dataclass(frozen=True)
class _Group:
    """A process group with what each rank called in it."""

    name: str
    members: frozenset[int]
    calls: dict[int, dict[int, _Call]]
    """Rank → number → call."""

    def stands_at(self) -> int | None:
        """Return the first collective that a rank waits for; None if there is none."""
        return min(
            (call.number for calls in self.calls.values() for call in calls.values() if call.pending), default=None
        )


def explain(records: Mapping[int, bytes]) -> RecordedHang | None:
    """Say which collective the ranks wait for, who did not join it and who called another one; None if the records do not tell."""
    read = {rank: record for rank, data in records.items() if (record := _read(data))}
    groups = [group for group in _groups(read) if group.stands_at() is not None]
    told = sorted(
        filter(None, (_explain_group(group, groups, frozenset(read)) for group in groups)),
        key=lambda one: (not one[1], one[2]),
    )
    return RecordedHang(told[0][0], told[0][1]) if told else None


def _read(data: bytes) -> dict[str, Any] | None:
    """Return a record, a pickle or JSON; None for anything else."""
    if len(data) > MOST_BYTES:
        return None
    with suppress(Exception):  # a pickle that is cut off, or none, may raise anything
        found = json.loads(data) if data[:1] == b"{" else _Plain(io.BytesIO(data)).load()
        return found if isinstance(found, dict) and isinstance(found.get("entries"), list) else None
    return None


def _groups(records: Mapping[int, dict[str, Any]]) -> list[_Group]:
    found: dict[tuple[str, str], _Group] = {}
    for rank, record in records.items():
        for key, call in _calls(record):
            if key not in found:
                found[key] = _Group(_told(key), _members(record, key[0]) or frozenset(records), {})
            found[key].calls.setdefault(rank, {})[call.number] = call
    return list(found.values())


def _calls(record: dict[str, Any]) -> Iterator[tuple[tuple[str, str], _Call]]:
    """List the collectives of one rank, each with the names of its group; what is garbled is left out."""
    for entry in record["entries"]:
        with suppress(KeyError, TypeError, ValueError, IndexError, AttributeError):
            if entry["is_p2p"]:
                continue
            name, description = entry["process_group"]
            yield (str(name), str(description)), _Call(
                str(entry["profiling_name"]).rpartition(":")[2], int(entry["collective_seq_id"]),
                tuple(map(str, entry.get("input_dtypes", ()))), tuple(tuple(map(int, one)) for one in entry["input_sizes"]),
                int(entry.get("time_created_ns") or 0), entry["state"] != "completed" and not entry.get("retired", False),
            )  # fmt: skip


def _members(record: dict[str, Any], name: str) -> frozenset[int]:
    """Return the ranks of a group, which a record lists as a text: `[0, 1]`."""
    config = record.get("pg_config", {})
    names = DEFAULT_GROUP if name in DEFAULT_GROUP else (name,)
    text = next((str(config[one].get("ranks", "")) for one in names if one in config), "")
    return frozenset(map(int, re.findall(r"\d+", text)))


def _told(key: tuple[str, str]) -> str:
    name, description = key
    return (
        "the default group"
        if name in DEFAULT_GROUP
        else f"the group {description if description not in ('', 'undefined') else name}"
    )


def _explain_group(
    group: _Group, groups: list[_Group], heard: frozenset[int]
) -> tuple[str, frozenset[int], int] | None:
    """The sentence, the ranks to blame, and when the collective that stands was begun; None if nobody knows anything. `heard`: the ranks with a
    record."""
    number = group.stands_at()
    there = {rank: calls[number] for rank, calls in group.calls.items() if number in calls}
    if not there or number is None:
        return None
    newest = {rank: max(calls) for rank, calls in group.calls.items()}
    missing = frozenset(rank for rank in group.members if newest.get(rank, 0) < number)
    usual = _usual(list(there.values()))
    waiting = sorted(rank for rank, call in there.items() if call.pending and _same(call, usual))
    others = {rank: call for rank, call in there.items() if not _same(call, usual)}
    parts = (
        [f"{ranks(waiting)} {'waits' if len(waiting) == 1 else 'wait'} in {usual} of {group.name}"] if waiting else []
    )
    parts += [f"rank {rank} called {call} there" for rank, call in sorted(others.items())]
    elsewhere = {rank: found for rank in sorted(missing) if (found := _waits_elsewhere(rank, group, groups))}
    parts += [f"rank {rank} waits in {found} instead" for rank, found in elsewhere.items()]
    absent, silent = (missing & heard) - elsewhere.keys(), missing - heard
    parts += [f"{ranks(sorted(absent))} did not join"] if absent else []
    parts += [f"{ranks(sorted(silent))} left no record"] if silent else []
    if not missing and not others:
        parts.append("all ranks joined: the network between them, or a GPU, stands still")
    return (
        "; ".join(parts),
        absent or frozenset(others) or silent,
        min(call.created for call in there.values()),
    )


def _usual(calls: list[_Call]) -> _Call:
    """Return the call that most ranks made; the first one if they are even."""
    return max(calls, key=lambda call: sum(_same(call, other) for other in calls))


def _same(one: _Call, other: _Call) -> bool:
    if one.name != other.name:
        return False
    return one.name not in SAME_SHAPES or (one.shapes, one.types) == (other.shapes, other.types)


def _waits_elsewhere(rank: int, group: _Group, groups: list[_Group]) -> str:
    for other in groups:
        pending = [call for call in other.calls.get(rank, {}).values() if call.pending]
        if other is not group and pending:
            return f"{min(pending, key=lambda call: call.number)} of {other.name}"
    return ""
