"""Snapshots that are checkpoints by themselves, in shared memory that outlives the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dtrain.checkpoint.file_writer import WeightsRange
from dtrain.checkpoint.kept_buffer import KeptBuffer
from dtrain.common.lazy_dataclass import dataclass


@dataclass(frozen=True)
class SnapshotPart:
    """The files that `Snapshot.write` would write in this process, as they are in memory."""

    buffer: KeptBuffer
    file: str
    """Name of what is in the buffer."""
    weights: Sequence[WeightsRange]
    small: Mapping[str, bytes]
    """Name → content of the other files."""
