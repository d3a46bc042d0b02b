"""Profiles of some steps of a worker, on request (`dtrain profile`)."""

from __future__ import annotations

from dtrain.api.protocol import ProfileSteps
from dtrain.api.training_backend import StepProfiler, TrainingBackend
from dtrain.record.events import StepsProfiled
from dtrain.record.folder import RunDir
from dtrain.worker.control_channel import ControlChannel


class Profiling:
    """Called before every step; without a request it costs a comparison."""

    def __init__(self, run: RunDir, rank: int, backend: TrainingBackend, channel: ControlChannel) -> None:
        self._run = run
        self._rank = rank
        self._backend = backend
        self._channel = channel
        self._window: ProfileSteps | None = None
        self._profiler: StepProfiler | None = None
        self._began = 0

    def before(self, step: int) -> None:
        """Begin or end a profile, if that is due."""
        if self._profiler and self._window and step >= self._began + self._window.steps:
            self._end(self._window, self._profiler)
        window = self._channel.profile
        if window and not self._profiler and step >= window.step:
            self._channel.profile = None
            if self._rank in window.ranks:
                self._begin(window, step)

    def _begin(self, window: ProfileSteps, step: int) -> None:
        self._window, self._began = window, step
        path = self._run.profile(step, self._rank)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._profiler = self._backend.start_profile(path)
        except (OSError, RuntimeError) as error:
            self._report(window, "", "", str(error))
        else:
            if self._profiler is None:
                self._report(window, "", "", "this strategy has no profiler")

    def _end(self, window: ProfileSteps, profiler: StepProfiler) -> None:
        self._profiler, path = None, self._run.profile(self._began, self._rank)
        try:
            operations = profiler.stop(path)
        except (OSError, RuntimeError) as error:
            self._report(window, "", "", str(error))
        else:
            self._report(window, str(path.relative_to(self._run.path)), operations, "")

    def _report(self, window: ProfileSteps, file: str, operations: str, problem: str) -> None:
        self._channel.report(
            StepsProfiled(
                rank=self._rank,
                request=window.request,
                step=self._began,
                steps=window.steps,
                file=file,
                operations=operations,
                problem=problem,
            )
        )
