"""Logs of a step's operations, for a drill that looks for the first one that differs: what strategies that can write them add."""

from __future__ import annotations

from dtrain.common.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Operation:
    """One operation of the framework on one rank."""

    name: str
    """The framework's name of the operation."""
    phase: str
    """The part of the step that it belongs to, in words; '' if that is not known."""
    number: int | None
    """The pass of the step (this worker's shards, counted from 0); None: outside the passes."""
    given: str
    """Digest of the tensors that it was called with."""
    numbers: tuple[str, ...]
    """Further arguments: numbers and texts."""
    made: str
    """Digest of the tensors that it gave or changed."""


@dataclass(frozen=True)
class Entry:
    """A line of a rank's log of operations."""

    step: int
    """Counted from 0."""
    shard: int | None
    place: str
    """The innermost line of the user's code that it was called from, as `file:line`; '' if there is none."""
    operation: Operation
