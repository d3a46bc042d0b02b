"""Decides which committed checkpoints stay on disk: the newest, the best, and every N-th step's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dtrain.job.job import Checkpoint
from dtrain.record import event_log
from dtrain.record.events import Evaluation, Event


class CheckpointRetention:
    """Knows the evaluations so far, of earlier attempts and supervisors too."""

    def __init__(self, wanted: Checkpoint, log: Path) -> None:
        self._wanted = wanted
        self._values: dict[int, float] = {}
        for event in event_log.read(log) if wanted.keep_best else ():
            self.see(event)

    @property
    def fewer(self) -> range:
        """Numbers of the newest ones that may stay where the disk has no room for more."""
        return range(self._wanted.keep - 1, 0, -1)

    def see(self, event: Event) -> None:
        """Something happened in the run."""
        best = self._wanted.keep_best
        if best and isinstance(event, Evaluation) and best.metric in event.values:
            self._values[event.step] = event.values[best.metric]

    def kept(self, steps: Iterable[int], most: int | None = None) -> set[int]:
        """Return those of the committed steps, newest first, that stay. Of equally good ones the earlier is the
        better. `most`: how many stay because they are the newest, if not as many as the recipe wants."""
        wanted, steps = self._wanted, list(steps)
        stay = set(steps[: min(wanted.keep, most or wanted.keep)])
        if wanted.keep_every:
            stay |= {step for step in steps if step % wanted.keep_every == 0}
        if wanted.keep_best:
            sign = 1 if wanted.keep_best.mode == "min" else -1
            # Values that are not finite compare with nothing.
            known = [step for step in steps if self._values.get(step, float("nan")) * 0 == 0]
            stay |= set(sorted(known, key=lambda step: (sign * self._values[step], step))[: wanted.keep_best.count])
        return stay
