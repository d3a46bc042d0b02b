"""How an attempt ends that nothing failed in: trained to its end, ended early, left at an agreed step, or rolled back."""

from __future__ import annotations

from collections.abc import Callable, Set

from dtrain.api import reports
from dtrain.record.events import BadStep, Event, TrainingStarted
from dtrain.supervisor.outcome import Drained, Outcome, RolledBack, Succeeded

Told = reports.LeftAtStep | reports.EndedEarly
"""Reports of workers that only matter when all of them have ended."""


class Ending:
    """The agreement on the step to leave one attempt at, and the workers' reports of its end."""

    def __init__(self, workers: int, *, kind: str) -> None:
        self._workers = workers
        self._kind = kind
        """See `Job.kind`."""
        self._left_step: int | None = None
        self._ended_early: reports.EndedEarly | None = None
        self._total_steps: int | None = None
        self._trained: int | None = None
        """Steps done by the rank that did most, according to the ledgers."""
        self._ended_well = 0
        """Workers that exited with code 0."""
        self.stopped = ""
        """Why the user's function asked for the end."""
        self.asked = False
        """Whether the workers were asked to leave."""
        self.can_save = False
        """Return whether the workers train, so that they can agree on a step and save at it."""
        self._proposals: dict[int, int] = {}
        self._agreed = False
        self._rolled_back: int | None = None
        """The step because of which all workers leave, to go on without it."""

    def hear(self, report: Told) -> None:
        """A worker is about to end."""
        if isinstance(report, reports.LeftAtStep):
            self._left_step = report.step
        else:
            self._ended_early = report

    def see(self, event: Event) -> None:
        """Take an event after which the workers may leave."""
        if isinstance(event, BadStep) and event.answer == "rollback":
            self._rolled_back = event.step
        if isinstance(event, TrainingStarted):
            self.can_save = True
            self._total_steps = event.total_steps

    def exited(self, code: int, step: int | None) -> None:
        """Note that a worker has exited after so many steps."""
        self._ended_well += code == 0
        self._trained = max(filter(None, (self._trained, step)), default=None)

    def propose(self, rank: int, step: int) -> None:
        """A rank waits at this step, the first one that it will not begin without an answer."""
        self._proposals[rank] = step

    def agree(self, running: Set[int]) -> int | None:
        """The step to save and leave at, once, as soon as every rank that still runs has proposed: the highest proposal. Every rank can
        still reach it and none is beyond it, so the agreement costs the training no collective."""
        if self._agreed or not self._proposals or not self._proposals.keys() >= running:
            return None
        self._agreed = True
        return max(self._proposals.values())

    def outcome(self, unsaved: Callable[[int], str]) -> Outcome:
        """Return the outcome of the attempt; `unsaved` says why the state of a step is not on disk."""
        if self._rolled_back is not None:
            return Drained(None) if self.asked else RolledBack(self._rolled_back)
        why_not = "" if self._kind == "script" else unsaved(self._last_step())
        if self.asked and not self._finished_first():
            return Drained(None if why_not else self._left_step)
        return Succeeded(why_not, self._stopped_early())

    def _last_step(self) -> int:
        """The step whose state is to be on disk: the agreed one, the one that a task was to reach, or else the last one that was done."""
        if self._left_step is not None:
            return self._left_step
        if self._ended_early:
            return self._ended_early.step
        asked = self._total_steps if self._kind == "task" else self._trained
        return asked or 0

    def _stopped_early(self) -> str:
        step = "" if self._left_step is None else f" at step {self._left_step}"
        early = self._ended_early
        told = f"ended early at step {early.step}: {early.reason}" if early else ""
        return f"stopped by the function{step}: {self.stopped}" if self.stopped else told

    def _finished_first(self) -> bool:
        """Whether all workers ended well by themselves before they were told a step to leave at."""
        return self._ended_well == self._workers and self._left_step is None and self._kind != "script"
