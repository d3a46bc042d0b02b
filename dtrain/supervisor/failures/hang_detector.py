"""Finds ranks that make no progress, from the liveness that agents report and from the step times of the run itself."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from dtrain.api.protocol import WorkerLiveness
from dtrain.common.lazy_dataclass import dataclass

LEAST_SECONDS = 120.0
"""No step for less than this is no hang by step times: a recompilation, a slow file server."""
TIMES_SLOWEST = 50.0
"""No step for this many times the slowest step so far is a hang, whatever CPU time the ranks use."""
TIMES_SLOWEST_AT_LEAST = 3.0
"""A hang is never shorter than this many times the slowest step, whatever `hang_seconds` says."""
STEPS_KNOWN = 3
"""Steps of a rank whose times were seen, after which they say something."""


@dataclass(frozen=True)
class Hang:
    """A hang, and how it was found."""

    rank: int
    """The stopped rank, or the one that is furthest behind."""
    step: int | None
    message: str
    steps: dict[str, int | None]
    """Rank → steps done."""
    stopped: bool = False
    """Whether the rank is stopped by a signal."""


class HangDetector:
    """A hang is a rank that is stopped by a signal, or all ranks idle, for `limit_seconds`; or, while dtrain's own loop does
    steps, no rank making one for much longer than steps take (a rank that spins in a collective uses CPU time, too). Of programs with a loop of
    their own, one that uses a GPU is idle without a step or output: waiting for a GPU takes CPU time."""

    def __init__(self, limit_seconds: float, *, own_loop: bool = True) -> None:
        self._limit = limit_seconds
        self._own_loop = own_loop
        """Return whether the loop is dtrain's, so that its steps tell when it stands still."""
        self._signs: dict[int, WorkerLiveness] = {}
        self._stepping: set[int] = set()
        self._counted: dict[int, int] = {}
        self._advanced: dict[int, float] = {}
        self._slowest = 0.0
        self._suspended = False
        self._earliest = 0.0
        """No hang is found before (monotonic seconds)."""

    def suspend(self, now: float, *, suspended: bool) -> None:
        """Whether ranks stand still for a person now; once they do no more, all clocks begin anew."""
        if self._suspended and not suspended:
            self._earliest = now + self._limit
        if suspended:
            self._advanced.clear()
        self._suspended = suspended

    def update(self, signs: dict[int, WorkerLiveness], now: float) -> None:
        """Newest liveness of some ranks."""
        for rank in signs.keys() & self._stepping:
            before = self._signs.get(rank)
            step, last = signs[rank].step, before.step if before else None
            if step is None or step == last:
                continue
            if last is not None and rank in self._advanced:
                self._counted[rank] = self._counted.get(rank, 0) + step - last
                self._slowest = max(self._slowest, (now - self._advanced[rank]) / max(1, step - last))
            self._advanced[rank] = now
        self._signs |= signs

    def phase(self, rank: int, *, stepping: bool) -> None:
        """A rank does steps from now on, or something that takes its own time."""
        self._advanced.pop(rank, None)
        if stepping:
            self._stepping.add(rank)
        else:
            self._stepping.discard(rank)

    def steps(self) -> dict[int, int]:
        """Rank → steps done, of the ranks that have steps."""
        return {rank: sign.step for rank, sign in sorted(self._signs.items()) if sign.step is not None}

    def find(self, running: Set[int], now: float) -> Hang | None:
        """A hang among the running ranks. A rank that only waits for a busy one is no hang, so all of them must be idle, or
        without a step."""
        if self._suspended or now < self._earliest:
            return None
        signs = {rank: self._signs[rank] for rank in running if rank in self._signs}
        if not signs:
            return None
        behind = min(signs, key=lambda rank: (signs[rank].step or 0, -signs[rank].idle_seconds))
        stopped = [rank for rank, sign in signs.items() if sign.stopped_seconds >= self._limit]
        if stopped:
            return replace(
                self._hang(signs, stopped[0], f"rank {stopped[0]} is stopped by a signal for {self._limit:g} s"),
                stopped=True,
            )
        if len(signs) < len(running):
            return None
        if all(self._idle_seconds(sign) >= self._limit for sign in signs.values()):
            spun = any(sign.idle_seconds < self._limit for sign in signs.values())
            what = (
                "no step and no output, and on GPUs CPU time is no sign of life,"
                if spun
                else "no step, no output and used no CPU time"
            )
            return self._hang(signs, behind, f"the ranks made {what} for {self._limit:g} s")
        limit = self._step_limit(running)
        if limit is not None and all(sign.quiet_seconds >= limit for sign in signs.values()):
            slowest = f" (a step took {self._slowest:.2g} s at most before)" if self._slowest else ""
            # Of ranks at the same step, those that only wait for one that spins use less CPU time than it does.
            spinning = min(signs, key=lambda rank: (signs[rank].step or 0, signs[rank].idle_seconds))
            return self._hang(signs, spinning, f"the ranks made no step and no output for {limit:g} s{slowest}")
        return None

    def _idle_seconds(self, sign: WorkerLiveness) -> float:
        return sign.quiet_seconds if sign.on_device and not self._own_loop else sign.idle_seconds

    def _step_limit(self, running: Set[int]) -> float | None:
        """Seconds without a step that are a hang; None while steps say nothing."""
        if not running <= self._stepping or any(self._signs[rank].step is None for rank in running):
            return None
        limit = self._limit
        if all(self._counted.get(rank, 0) >= STEPS_KNOWN for rank in running):
            limit = min(limit, max(LEAST_SECONDS, TIMES_SLOWEST * self._slowest))
        return max(limit, TIMES_SLOWEST_AT_LEAST * self._slowest)

    def _hang(self, signs: dict[int, WorkerLiveness], rank: int, why: str) -> Hang:
        return Hang(rank, signs[rank].step, why, {str(rank): sign.step for rank, sign in sorted(signs.items())})
