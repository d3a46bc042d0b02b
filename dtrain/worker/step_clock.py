"""What the steps of one rank take, told to the supervisor every few seconds: it looks for stragglers."""

from __future__ import annotations

import time

from dtrain.api.reports import RankTimes
from dtrain.api.strategy import TimesOwnWork, TrainingBackend
from dtrain.data.prefetch import DataWait
from dtrain.worker.control_channel import ControlChannel

EVERY_SECONDS = 3.0
REPORTS_A_SECOND = 100
"""Of all ranks together, about."""


class StepClock:
    """Counts the steps of this rank; one comparison a step until a report is due."""

    def __init__(self, channel: ControlChannel, backend: TrainingBackend, wait: DataWait, world_size: int) -> None:
        self._channel = channel
        self._backend = backend
        self._wait = wait
        self._every = max(EVERY_SECONDS, world_size / REPORTS_A_SECOND)
        self._single = world_size == 1
        self._since: float | None = None
        self._steps = 0
        self._waited = 0.0

    def done(self, step: int) -> None:
        """This many steps are done. The first one of an attempt, which compiles and allocates, does not count."""
        now = time.perf_counter()
        if self._single:
            return
        if self._since is None:
            self._begin(now)
            return
        self._steps += 1
        elapsed = now - self._since
        if elapsed < self._every:
            return
        own = self._backend.own_work() if isinstance(self._backend, TimesOwnWork) else None
        data = self._wait.seconds - self._waited
        self._channel.report(
            RankTimes(
                step, self._steps, round(elapsed / self._steps, 6), round(data / self._steps, 6),
                None if own is None else round(own / self._steps, 6),
            )
        )  # fmt: skip
        self._begin(now)

    def _begin(self, now: float) -> None:
        if self._since is None and isinstance(self._backend, TimesOwnWork):
            self._backend.own_work()
        self._since, self._steps, self._waited = now, 0, self._wait.seconds
