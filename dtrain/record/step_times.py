"""When the steps of an attempt were done, and how long rank 0 waited for their data: from its ledger or, without one, from events."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.events import Metrics, Progress, TrainingStarted
from dtrain.record.sample_ledger import Entry, LedgerFile


@dataclass(frozen=True)
class Moment:
    """So many steps were done at a time."""

    step: int
    """Steps done."""
    time: float
    """Seconds since 1970."""


class StepTimes:
    """The steps of one attempt."""

    def __init__(self, ledger: LedgerFile) -> None:
        self._ledger = ledger
        self._steps, self._times = array("q"), array("d")
        self._waits = array("d")
        """Seconds of data wait up to the metrics at the same position of `_wait_steps`, all together."""
        self._wait_steps = array("q")
        self._waiting_since: float | None = None
        self._begin: Moment | None = None

    def began(self, event: TrainingStarted) -> None:
        """Note that the first step is next."""
        self._begin = self._begin or Moment(event.step, event.time)
        self._waiting_since = event.time

    def add(self, event: Metrics | Progress) -> None:
        """Note the number of steps done."""
        if not self._steps or event.step > self._steps[-1]:
            self._steps.append(event.step)
            self._times.append(event.time)
        if isinstance(event, Metrics):
            if event.data_wait and self._waiting_since is not None:
                before = self._waits[-1] if self._waits else 0.0
                self._wait_steps.append(event.step)
                self._waits.append(before + event.data_wait * max(0.0, event.time - self._waiting_since))
            self._waiting_since = event.time

    def restart_wait(self, time: float) -> None:
        """Metrics measure the data wait from here on: an evaluation has ended."""
        self._waiting_since = time

    def data_wait(self, undone_from: int | None) -> float:
        """Seconds, of the steps before the first one that was undone."""
        if not self._waits:
            return 0.0
        kept = len(self._waits) if undone_from is None else bisect_left(self._wait_steps, undone_from + 1)
        return self._waits[kept - 1] if kept else 0.0

    @property
    def first(self) -> Moment | None:
        """The first step that was done; None if there is none."""
        return _moment(self._ledger.at(0)) or (self._begin if self._steps else None)

    @property
    def last(self) -> Moment | None:
        """The last step that was done."""
        return _moment(self._ledger.at(-1)) or self._event(len(self._steps) - 1)

    def at(self, step: int) -> Moment | None:
        """When this many steps were done; None if that is not known. Without a ledger, the first moment from which at least
        as many are known to be done."""
        first = self._ledger.at(0)
        if first is not None:
            index = step - 1 - first.step
            return _moment(self._ledger.at(index)) if index >= 0 else None
        return self._event(bisect_left(self._steps, step))

    def _event(self, index: int) -> Moment | None:
        return Moment(self._steps[index], self._times[index]) if 0 <= index < len(self._steps) else None


def _moment(entry: Entry | None) -> Moment | None:
    return None if entry is None else Moment(entry.step + 1, entry.time)
