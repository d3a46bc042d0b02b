"""Finds ranks that make no progress, from the liveness that agents report."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from dtrain.api.protocol import WorkerLiveness


@dataclass(frozen=True)
class Hang:
    """What hangs, and how it shows."""

    rank: int
    """The stopped rank, or the one that is furthest behind."""
    step: int | None
    message: str
    steps: dict[str, int | None]
    """Rank → steps done."""


class HangDetector:
    """A hang is a rank that is stopped by a signal, or all ranks idle, for `limit_seconds`."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._signs: dict[int, WorkerLiveness] = {}

    def update(self, signs: dict[int, WorkerLiveness]) -> None:
        """Newest liveness of some ranks."""
        self._signs |= signs

    def steps(self) -> dict[int, int]:
        """Rank → steps done, of the ranks that have steps."""
        return {rank: sign.step for rank, sign in sorted(self._signs.items()) if sign.step is not None}

    def find(self, running: Set[int]) -> Hang | None:
        """A hang among the running ranks. A rank that only waits for a busy one is no hang, so all of them must be idle."""
        signs = {rank: self._signs[rank] for rank in running if rank in self._signs}
        stopped = [rank for rank, sign in signs.items() if sign.stopped_seconds >= self._limit]
        idle = len(signs) == len(running) and all(sign.idle_seconds >= self._limit for sign in signs.values())
        if not signs or not (stopped or idle):
            return None
        behind = min(signs, key=lambda rank: (signs[rank].step or 0, -signs[rank].idle_seconds))
        rank = stopped[0] if stopped else behind
        why = "is stopped by a signal" if stopped else "made no step, no output and used no CPU time"
        message = f"rank {rank} {why} for {self._limit:g} s; the stacks of all ranks are in their logs"
        steps = {str(rank): sign.step for rank, sign in sorted(signs.items())}
        return Hang(rank, signs[rank].step, message, steps)
