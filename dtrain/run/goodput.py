"""Where the time of a run went: read from its diary and its ledgers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dtrain.run import event_log, sample_ledger
from dtrain.run.folder import RunDir
from dtrain.run.history import attempt_starts, undone_from
from dtrain.run.sample_ledger import Entry


@dataclass
class Account:
    """Seconds of a run, each counted once."""

    total: float = 0.0
    training: float = 0.0
    """On steps that stand in the committed history, evaluation included."""
    saving: float = 0.0
    """Training held still to copy state."""
    repeating: float = 0.0
    """On steps that a failure undid."""
    detecting: float = 0.0
    """From the last sign of training to the moment a failure was known."""
    starting: float = 0.0
    """Before the first step of the first attempt."""
    restarting: float = 0.0
    """From a known failure to the next step."""
    ending: float = 0.0

    @property
    def training_share(self) -> float:
        """Between 0 and 1."""
        return self.training / self.total if self.total else 0.0


def account(run: RunDir, now: float) -> dict[str, float]:
    """The account of a run so far, rounded for its diary; time while no supervisor ran does not count."""
    result = Account()
    history = event_log.read(run.events)
    firsts = {number: _longest(ranks) for number, ranks in sample_ledger.attempts(run).items()}
    starts = attempt_starts(history)
    mark = None
    for event in history:
        if event["event"] == "run":
            mark = event["time"]
            begun = mark
            result_start = "starting"
        elif mark is None:
            continue
        elif event["event"] == "attempt" and (entries := firsts.get(event["attempt"])):
            setattr(result, result_start, getattr(result, result_start) + max(0.0, entries[0].time - mark))
            lost = undone_from(event["attempt"], starts)
            for before, entry in itertools.pairwise(entries):
                field = "repeating" if lost is not None and entry.step >= lost else "training"
                setattr(result, field, getattr(result, field) + entry.time - before.time)
            mark = max(mark, entries[-1].time)
            result_start = "restarting"
        elif event["event"] == "checkpoint":
            result.saving += event.get("stall_seconds", event.get("held_seconds", 0.0))
        elif event["event"] == "failure":
            result.detecting += max(0.0, event["time"] - mark)
            mark = max(mark, event["time"])
        elif event["event"] == "end":
            result.total += event["time"] - begun
            result.ending += max(0.0, event["time"] - mark)
            mark = None
    if mark is not None:
        result.total += now - begun
        result.ending += max(0.0, now - mark)
    result.training = max(0.0, result.training - result.saving)
    return {
        name: round(value, 3) for name, value in (asdict(result) | {"training_share": result.training_share}).items()
    }


def _longest(ranks: Sequence[list[Entry]]) -> list[Entry]:
    return max(ranks, key=len, default=[])
