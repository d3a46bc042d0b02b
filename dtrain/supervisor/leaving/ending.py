"""How an attempt ends that nothing failed in: trained to its end, ended early, left at an agreed step, or rolled back."""

from __future__ import annotations

from collections.abc import Set

from dtrain.api import reports
from dtrain.record.events import BadStep, Event
from dtrain.supervisor.outcome import Drained, Outcome, RolledBack, Succeeded

Told = reports.LeftAtStep | reports.EndedEarly
"""Reports of workers that only matter when all of them have ended."""


class Ending:
    """The agreement on the step to leave one attempt at, and the workers' reports of its end."""

    def __init__(self, workers: int, *, script: bool) -> None:
        self._workers = workers
        self._script = script
        self._left_step: int | None = None
        self._ended_early = ""
        self._ended_well = 0
        """Workers that exited with code 0."""
        self.stopped = ""
        """Why the user's function asked for the end."""
        self.asked = False
        """Whether the workers were asked to leave."""
        self._proposals: dict[int, int] = {}
        self._agreed = False
        self._rolled_back: int | None = None
        """The step because of which all workers leave, to go on without it."""

    def hear(self, report: Told) -> None:
        """A worker is about to end."""
        if isinstance(report, reports.LeftAtStep):
            self._left_step = report.step
        else:
            self._ended_early = f"ended early at step {report.step}: {report.reason}"

    def see(self, event: Event) -> None:
        """Take an event after which the workers may leave."""
        if isinstance(event, BadStep) and event.answer == "rollback":
            self._rolled_back = event.step

    def exited(self, code: int) -> None:
        """Note that a worker has exited."""
        self._ended_well += code == 0

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

    def outcome(self, unsaved: str) -> Outcome:
        """Return the outcome of the attempt; `unsaved`: why the state at its end is not on disk."""
        if self._rolled_back is not None:
            return Drained(None) if self.asked else RolledBack(self._rolled_back)
        if self.asked and not self._finished_first():
            return Drained(self._left_step)
        return Succeeded(unsaved, self._stopped_early())

    def _stopped_early(self) -> str:
        step = "" if self._left_step is None else f" at step {self._left_step}"
        return f"stopped by the function{step}: {self.stopped}" if self.stopped else self._ended_early

    def _finished_first(self) -> bool:
        """Whether all workers ended well by themselves before they were told a step to leave at."""
        return self._ended_well == self._workers and self._left_step is None and not self._script
