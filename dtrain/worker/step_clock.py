"""Measures the steps of one rank and reports them every few seconds, so that the supervisor finds stragglers."""

from __future__ import annotations

import time

from dtrain.api.phases import DATA, SAVE
from dtrain.api.reports import RankTimes
from dtrain.api.training_backend import TrainingBackend
from dtrain.data.prefetch import DataWait
from dtrain.worker.control_channel import ControlChannel

EVERY_SECONDS = 3.0
REPORTS_A_SECOND = 100
"""Approximate number of reports a second of all ranks together."""


class Stopwatch:
    """Adds up the time inside of its `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._began


class StepClock:
    """Counts the steps of this rank; one comparison a step until a report is due."""

    def __init__(
        self, channel: ControlChannel, backend: TrainingBackend, wait: DataWait, saving: Stopwatch, world_size: int
    ) -> None:
        self._channel = channel
        self._backend = backend
        self._outside: dict[str, DataWait | Stopwatch] = {DATA: wait, SAVE: saving}
        """Phases that no backend measures, each with its seconds so far."""
        self._every = max(EVERY_SECONDS, world_size / REPORTS_A_SECOND)
        self._single = world_size == 1
        self._since: float | None = None
        self._steps = 0
        self._before: dict[str, float] = {}
        """Seconds at the beginning of the steps that are counted."""

    def done(self, step: int) -> None:
        """Note the number of steps done. The first one of an attempt, which compiles and allocates, does not count."""
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
        phases = {name: (one.seconds - self._before[name]) / self._steps for name, one in self._outside.items()}
        phases |= self._backend.phases()
        rounded = {name: round(seconds, 6) for name, seconds in phases.items()}
        self._channel.report(RankTimes(step, self._steps, round(elapsed / self._steps, 6), rounded))
        self._begin(now)

    def _begin(self, now: float) -> None:
        if self._since is None:
            self._backend.phases()
        self._since, self._steps = now, 0
        self._before = {name: one.seconds for name, one in self._outside.items()}
