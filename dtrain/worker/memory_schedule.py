"""When the next in-memory checkpoint is due, agreed on by all ranks: every so many steps as the recipe says, or as often as it costs
less than one percent of the time."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque

from dtrain.api.reports import MemoryInterval
from dtrain.api.strategy import TrainingBackend
from dtrain.spec.job import Checkpoint
from dtrain.worker.control_channel import ControlChannel

COST = 0.0075
"""Share of the time that the copies may take: less than the 1 % that is promised. For a mean time M between failures, Young's formula
(1974) gives the best interval as sqrt(2 · stall · M), which costs less for every M of more than 9,000 stalls."""
FIRST_STEPS = 8
"""Between the first copies, which show what they cost: the first ones allocate memory, and the first steps compile."""
FIRST_COPIES = 3
OFTEN_AGREED = 12
"""The first copies after each of which the ranks agree on an interval; later they do after every so many."""
MOST_STEPS = 1_000_000
GROWTH = 2
"""The interval grows at most by this factor at a time: what was measured first may be wrong."""
TOLD_AGAIN = 2.0
"""An interval is told again if it changes by this factor."""


class MemorySchedule:
    """The interval of one attempt. `due` is the same on every rank; what rank 0 measures decides it."""

    def __init__(self, settings: Checkpoint, first_step: int, rank: int, world_size: int) -> None:
        self._given = settings.memory_every_steps if isinstance(settings.memory_every_steps, int) else None
        self._rank = rank
        self._world_size = world_size
        self._copies = 0
        self._every = self._given if self._given is not None else FIRST_STEPS
        self._last = first_step
        self._since = time.perf_counter()
        self._stalls: deque[float] = deque(maxlen=FIRST_COPIES)
        self._step_seconds: deque[float] = deque(maxlen=FIRST_COPIES)
        self._told = 0

    @property
    def active(self) -> bool:
        """Whether there are in-memory checkpoints at all."""
        return self._every > 0

    @property
    def agrees(self) -> bool:
        """Whether the ranks agree on an interval after the next copy."""
        if self._given:
            return self.measuring
        return self._copies < OFTEN_AGREED or self._copies % OFTEN_AGREED == 0

    @property
    def measuring(self) -> bool:
        """The next copy is one of the first, which may take long."""
        return self._copies < FIRST_COPIES

    def due(self, done: int) -> bool:
        """Whether to copy after so many steps."""
        if not self._every:
            return False
        return done % self._every == 0 if self._given else done - self._last >= self._every

    def begin(self, done: int) -> None:
        """A copy is about to be made after so many steps."""
        now = time.perf_counter()
        self._step_seconds.append((now - self._since) / max(1, done - self._last))
        self._last, self._since = done, now

    def saved(self, done: int) -> None:
        """A checkpoint was copied to be written to disk, which counts."""
        self._last, self._since = done, time.perf_counter()

    def copied(
        self, backend: TrainingBackend, channel: ControlChannel, size: int, seal_seconds: float, *, room: bool
    ) -> int:
        """Collective. The copy is there, of this size in bytes on this rank, and its digest takes so many seconds beside the training;
        `room`: this rank had memory for it. Returns how many ranks had none: if there are any, there are no more copies."""
        agrees = self.agrees
        self._copies += 1
        self._stalls.append(time.perf_counter() - self._since)
        if not agrees:
            self._since = time.perf_counter()
            return 0
        wanted = self._wanted(seal_seconds) if self._rank == 0 else 0
        # One rank's number and zeros: their sum is exact, and the same everywhere.
        agreed = backend.mean({"every": float(wanted), "room": float(room)})
        short = self._world_size - round(agreed["room"] * self._world_size)
        if short:
            self._every = 0
            return short
        self._every = round(agreed["every"] * self._world_size)
        self._since = time.perf_counter()
        self._tell(channel, size)
        return 0

    def _wanted(self, seal_seconds: float) -> int:
        if self._given:
            return self._given
        if self.measuring:
            return FIRST_STEPS
        # An evaluation or another pause between two copies makes the mean of these steps too long: the least is of none.
        stall, step = statistics.median(self._stalls) + seal_seconds, min(self._step_seconds)
        return min(MOST_STEPS, GROWTH * self._every, max(1, math.ceil(stall / COST / max(step, 1e-9))))

    def _tell(self, channel: ControlChannel, size: int) -> None:
        if self._rank or self.measuring:
            return
        ratio = self._every / max(1, self._told)
        if not self._told or not 1 / TOLD_AGAIN < ratio < TOLD_AGAIN:
            self._told = self._every
            channel.report(MemoryInterval(self._every, round(statistics.median(self._stalls), 6), size))
