"""Phases of a training step: what a rank's time goes into."""

from __future__ import annotations

from collections.abc import Mapping

DATA = "data"
"""Waiting for the batch."""
WORK = "work"
"""Forward and backward pass together, if a strategy cannot tell them apart."""
FORWARD = "forward"
BACKWARD = "backward"
REDUCE = "reduce"
"""Waiting for other ranks and summing with them: gradients, and parameters that are sharded."""
SAVE = "save"
"""The training stands still for a checkpoint."""
PHASES = (DATA, WORK, FORWARD, BACKWARD, REDUCE, SAVE)


def own_seconds(seconds: Mapping[str, float]) -> float:
    """Return the seconds of a step that a rank computes without waiting for others."""
    return sum(value for phase, value in seconds.items() if phase != REDUCE)
