"""Logs of a step's operations, for a drill that looks for the first one that differs: what strategies that can write them add."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


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


@runtime_checkable
class KnowsOperations(Protocol):
    """A strategy whose training backend is a `LogsOperations`."""

    knows_operations: bool


@runtime_checkable
class LogsOperations(Protocol):
    """A training backend that can tell every operation of a step, in the same order whenever the step is done again."""

    def operations_told(self, tell: Callable[[Operation], None]) -> AbstractContextManager[None]:
        """Around a step: `tell` is called after each operation, where possible in the thread and below the frames that called it."""
