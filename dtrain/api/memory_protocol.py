"""Messages between supervisor and agents about in-memory checkpoints; part of `dtrain.api.protocol`."""

from __future__ import annotations

from dataclasses import field

from dtrain.checkpoint.store import Files
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.message import Message


@dataclass(frozen=True)
class MemoryPeer:
    """An agent that has parts of in-memory checkpoints."""

    address: str
    port: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class MemoryCheckpoint:
    """An in-memory checkpoint, of which every part is on some node."""

    attempt: int
    """The attempt that made it."""
    step: int
    peers: tuple[MemoryPeer, ...] = ()
    """Who has which ranks' parts; those that the node has itself may be among them."""


@dataclass(frozen=True)
class WriteMemory(Message):
    """Command: write this node's parts of an in-memory checkpoint to disk, those of some ranks."""

    attempt: int
    step: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class HeldPart:
    """One rank's part of an in-memory checkpoint, held by a node."""

    attempt: int
    rank: int
    step: int
    """-1: this rank has no part of the state, of any step."""


@dataclass(frozen=True)
class MemoryHeld(Message):
    """Event: all workers of the node have ended, and these parts of in-memory checkpoints are still here."""

    attempt: int
    parts: tuple[HeldPart, ...]


@dataclass(frozen=True)
class MemoryWritten(Message):
    """Event: a part of an in-memory checkpoint is on disk, or could not be written."""

    attempt: int
    rank: int
    step: int
    files: Files = field(default_factory=dict)
    weights: str = ""
    error: str = ""
