"""Goodput: which part of a run's time was training, read from its event log and the ledgers of rank 0."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from dtrain.run import event_log
from dtrain.run.events import (
    AttemptStarted,
    CheckpointSaved,
    Event,
    FailureOccurred,
    RunEnded,
    RunStarted,
    WorkersStarted,
)
from dtrain.run.folder import RunDir
from dtrain.run.history import attempt_starts, undone_from
from dtrain.run.sample_ledger import Entry, LedgerFile


@dataclass
class Account:
    """Seconds of a run, each counted once."""

    total: float = 0.0
    training: float = 0.0
    """On steps that stand in the committed history, evaluation included."""
    running: float = 0.0
    """A script's own time, from the start of its workers to their end or failure: its steps are not known."""
    saving: float = 0.0
    """Training held still to copy state."""
    repeating: float = 0.0
    """On steps that a failure undid."""
    detecting: float = 0.0
    """From the last step to the moment a failure was known."""
    starting: float = 0.0
    """Before the first step of the first attempt."""
    restarting: float = 0.0
    """From a known failure to the next step."""
    ending: float = 0.0
    """From the last step to the end."""

    @property
    def training_share(self) -> float:
        """Between 0 and 1."""
        return self.training / self.total if self.total else 0.0


class _Accountant:
    """Walks through the event log; `_mark` is the time up to which everything is accounted for."""

    def __init__(self, run: RunDir, starts: dict[int, int]) -> None:
        self._run = run
        self._starts = starts
        self._begun = 0.0
        self._mark: float | None = None
        self._trained = False
        self._script = self._runs = False
        self.account = Account()

    def add(self, event: Event) -> None:
        """Account for the time up to an event."""
        if isinstance(event, RunStarted):
            self._begun = self._mark = event.time
            self._trained = False
            self._script = event.kind == "script"
        elif self._mark is None:
            return
        elif isinstance(event, WorkersStarted) and self._script:
            self._start_script(event.time)
        elif isinstance(event, AttemptStarted):
            self._add_attempt(event.attempt)
        elif isinstance(event, CheckpointSaved):
            self.account.saving += event.stall_seconds
        elif isinstance(event, FailureOccurred):
            if not self._end_script(event.time):
                self.account.detecting += max(0.0, event.time - self._mark)
            self._mark = max(self._mark, event.time)
        elif isinstance(event, RunEnded):
            self.end(event.time)

    def end(self, now: float) -> None:
        """Close the account at this time, when a supervisor left or somebody asks; time without a supervisor does not count."""
        if self._mark is not None:
            self.account.total += now - self._begun
            if not self._end_script(now):
                self.account.ending += max(0.0, now - self._mark)
            self._mark = None

    def _start_script(self, now: float) -> None:
        """The first node of an attempt started its workers."""
        if self._runs or self._mark is None:
            return
        if self._trained:
            self.account.restarting += max(0.0, now - self._mark)
        else:
            self.account.starting += max(0.0, now - self._mark)
        self._mark, self._runs, self._trained = now, True, True

    def _end_script(self, now: float) -> bool:
        """Account for the time of a running script; False if none runs."""
        if not self._runs or self._mark is None:
            return False
        self.account.running += max(0.0, now - self._mark)
        self._runs = False
        return True

    def _add_attempt(self, attempt: int) -> None:
        ledger = LedgerFile(self._run.ledger(attempt, 0))
        first, last = ledger.at(0), ledger.at(-1)
        if first is None or last is None or self._mark is None:
            return
        waited = max(0.0, first.time - self._mark)
        if self._trained:
            self.account.restarting += waited
        else:
            self.account.starting += waited
        kept = self._last_kept(ledger, first, last, undone_from(attempt, self._starts))
        self.account.training += kept.time - first.time
        self.account.repeating += last.time - kept.time
        self._mark = max(self._mark, last.time)
        self._trained = True

    def _last_kept(self, ledger: LedgerFile, first: Entry, last: Entry, undone: int | None) -> Entry:
        """The last step of an attempt that no later attempt did again; the first one if there is none."""
        if undone is None or undone > last.step:
            return last
        return ledger.at(max(0, undone - 1 - first.step)) or first


def account(run: RunDir, now: float) -> dict[str, float]:
    """The account of a run so far in seconds, rounded for its event log."""
    history = event_log.read(run.events)
    accountant = _Accountant(run, attempt_starts(history))
    for event in history:
        accountant.add(event)
    accountant.end(now)
    result = accountant.account
    result.training = max(0.0, result.training - result.saving)
    return {
        name: round(value, 3) for name, value in (asdict(result) | {"training_share": result.training_share}).items()
    }
