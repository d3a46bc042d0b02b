"""Finds ranks that the others wait for, from what every rank reports of its steps: its own work against the usual one.

A synchronous step takes every rank as long as the slowest one, so the time of a step says nothing; the time in the phases that do not
wait for the others does (`dtrain.api.phases`).
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median_low

from dtrain.api.phases import PHASES, REDUCE, SAVE, own_seconds
from dtrain.api.reports import RankTimes
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record import events
from dtrain.record.event_log import EventLog

TIMES_USUAL = 1.2
"""Own work of so many times the median of all ranks is slow,"""
SHARE_OF_STEP = 0.1
"""if it is longer by at least this share of the step."""
REPORTS = 3
"""In a row, one every few seconds, that make a straggler, or show that it is one no more."""


@dataclass
class _Slow:
    """A rank that is slow now, or was just now."""

    reports: int = 0
    """Consecutive reports that show the rank as slow; for a straggler, those that do not."""
    logged: bool = False
    cost_seconds: float = 0.0


class Stragglers:
    """The stragglers of one attempt."""

    def __init__(self, attempt: int, log: EventLog, owner: Mapping[int, str]) -> None:
        self._attempt = attempt
        self._log = log
        self._owner = owner
        """Rank → node."""
        self.newest: dict[int, RankTimes] = {}
        """Rank → what it reported last."""
        self._slow: dict[int, _Slow] = {}
        self._new: list[tuple[int, str]] = []

    def heard(self, rank: int, times: RankTimes) -> None:
        """Take one report; a rank is compared once all have reported."""
        self.newest[rank] = times
        if len(self.newest) < len(self._owner):
            return
        usual = median_low(own_seconds(one.phases) for one in self.newest.values())
        excess = own_seconds(times.phases) - usual
        slow = excess > max((TIMES_USUAL - 1) * usual, SHARE_OF_STEP * times.step_seconds)
        found = self._slow.setdefault(rank, _Slow()) if slow else self._slow.get(rank)
        if found is None:
            return
        found.cost_seconds += max(0.0, excess) * times.steps if slow else 0.0
        found.reports = found.reports + 1 if slow != found.logged else 0
        if found.reports < REPORTS:
            if not slow and not found.logged:
                del self._slow[rank]
            return
        found.reports = 0
        if slow:
            found.logged = True
            if self._log_found(rank, times) != SAVE:  # some strategies have rank 0 save alone, on any node
                self._new.append((rank, self._owner.get(rank, "")))
        else:
            self._log_over(rank)

    def take(self) -> list[tuple[int, str]]:
        """(Rank, node) of those that were found since the last call."""
        found, self._new = self._new, []
        return found

    def end(self) -> None:
        """The attempt is over: say what its stragglers cost."""
        for rank in [rank for rank, one in self._slow.items() if one.logged]:
            self._log_over(rank)

    def _log_found(self, rank: int, times: RankTimes) -> str:
        """Log it, and return the phase in which it is slow."""
        usual = {
            phase: median_low(one.phases.get(phase, 0.0) for one in self.newest.values())
            for phase in PHASES if phase != REDUCE
        }  # fmt: skip
        phase = max(usual, key=lambda one: times.phases.get(one, 0.0) - usual[one])
        self._log.add(
            events.StragglerFound(
                attempt=self._attempt, rank=rank, node=self._owner.get(rank, ""), step=times.step, phase=phase,
                seconds=times.phases.get(phase, 0.0), usual_seconds=round(usual[phase], 6),
            )
        )  # fmt: skip
        return phase

    def _log_over(self, rank: int) -> None:
        cost = round(self._slow.pop(rank).cost_seconds, 3)
        self._log.add(events.StragglerOver(attempt=self._attempt, rank=rank, cost_seconds=cost))
