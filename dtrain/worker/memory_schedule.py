"""The interval between in-memory checkpoints: a fixed number of steps from the recipe, or the shortest one that costs less than 1 % of the
step time. All ranks agree on it."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque

from dtrain.api.training_backend import TrainingBackend
from dtrain.job.job import Checkpoint
from dtrain.record.events import MemoryInterval
from dtrain.worker.control_channel import ControlChannel

COST = 0.0075
"""Target overhead, as a share of the step time; 1 % is promised. Young's formula (1974), interval = sqrt(2 * stall * MTBF), gives a longer
interval and less overhead if the mean time between failures (MTBF) is more than about 9,000 times the stall."""
FIRST_STEPS = 8
"""Steps between the first copies, whose cost is measured; the first ones also allocate memory, and the first steps compile."""
FIRST_COPIES = 3
OFTEN_AGREED = 12
"""The ranks agree on the interval after each of the first 12 copies, and later after every 12th."""
MOST_STEPS = 1_000_000
GROWTH = 2
"""Limit to the growth of the interval at each agreement, since the first measurements can be wrong."""
TOLD_AGAIN = 2.0
"""A changed interval is reported if it differs by this factor from the last one that was reported."""


class MemorySchedule:
    """The interval in one attempt. Rank 0 measures and decides; `due` gives the same answer on every rank."""

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
        """Whether in-memory checkpoints are made."""
        return self._every > 0

    @property
    def agrees(self) -> bool:
        """Whether the ranks agree on the interval after the next copy."""
        if self._given:
            return self.measuring
        return self._copies < OFTEN_AGREED or self._copies % OFTEN_AGREED == 0

    @property
    def measuring(self) -> bool:
        """Whether the next copy is one of the first, which can take long."""
        return self._copies < FIRST_COPIES

    def due(self, done: int) -> bool:
        """Whether a copy is to be made now that `done` steps are done."""
        if not self._every:
            return False
        return done % self._every == 0 if self._given else done - self._last >= self._every

    def begin(self, done: int) -> None:
        """A copy starts now, after `done` steps."""
        now = time.perf_counter()
        self._step_seconds.append((now - self._since) / max(1, done - self._last))
        self._last, self._since = done, now

    def saved(self, done: int) -> None:
        """A snapshot for a checkpoint on disk was taken, which counts as a copy."""
        self._last, self._since = done, time.perf_counter()

    def copied(
        self, backend: TrainingBackend, channel: ControlChannel, size: int, digest_seconds: float, *, room: bool
    ) -> int:
        """Collective. A copy of `size` bytes was made on this rank; computing its digest beside the training took `digest_seconds`. `room`:
        whether this rank had memory for it. Returns the number of ranks without memory; if there are any, no more copies are made."""
        agrees = self.agrees
        self._copies += 1
        self._stalls.append(time.perf_counter() - self._since)
        if not agrees:
            self._since = time.perf_counter()
            return 0
        wanted = self._wanted(digest_seconds) if self._rank == 0 else 0
        # Rank 0's number plus zeros: the sum is exact, so all ranks get the same integer.
        agreed = backend.mean({"every": float(wanted), "room": float(room)})
        short = self._world_size - round(agreed["room"] * self._world_size)
        if short:
            self._every = 0
            return short
        self._every = round(agreed["every"] * self._world_size)
        self._since = time.perf_counter()
        self._tell(channel, size)
        return 0

    def _wanted(self, digest_seconds: float) -> int:
        if self._given:
            return self._given
        if self.measuring:
            return FIRST_STEPS
        # An evaluation or another pause inflates the mean step time of its interval; the minimum is of an interval without one.
        stall, step = statistics.median(self._stalls) + digest_seconds, min(self._step_seconds)
        return min(MOST_STEPS, GROWTH * self._every, max(1, math.ceil(stall / COST / max(step, 1e-9))))

    def _tell(self, channel: ControlChannel, size: int) -> None:
        if self._rank or self.measuring:
            return
        ratio = self._every / max(1, self._told)
        if not self._told or not 1 / TOLD_AGAIN < ratio < TOLD_AGAIN:
            self._told = self._every
            seconds = round(statistics.median(self._stalls), 6)
            channel.report(MemoryInterval(every_steps=self._every, seconds=seconds, bytes=size))
