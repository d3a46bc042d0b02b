"""Checking from the sample ledgers that every sample of every committed step was trained on exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dtrain.run import event_log, sample_ledger
from dtrain.run.folder import RunDir
from dtrain.run.history import attempt_starts

if TYPE_CHECKING:  # the agent and the supervisor read ledgers, and are not to pay for numpy
    from dtrain.data.sampler import Sampler
from dtrain.run.sample_ledger import Entry, checksum


@dataclass(frozen=True)
class Audit:
    """What the committed history of a run was trained on."""

    steps: int
    samples: int
    twice: int
    """Samples that stand in more than one record of their committed step."""
    skipped: int
    """Samples of a committed step that no worker trained on."""
    altered: int
    """Records whose samples are not those that seed, epoch and step give."""
    repeated_steps: int = 0
    """Steps that were lost in a failure and trained again; they are no part of the committed history."""
    problems: tuple[str, ...] = field(default=())

    @property
    def clean(self) -> bool:
        """Every sample of every committed step exactly once."""
        return not (self.twice or self.skipped or self.altered)


def compare(history: dict[int, list[list[Entry]]], starts: dict[int, int], steps: int, sampler: Sampler) -> Audit:
    """Check the first `steps` steps: the last attempt that began at or before a step owns it.

    `starts` gives the step each attempt began at; what an older attempt did from there on was rolled back."""
    owner: dict[int, int] = {}
    for attempt in sorted(starts):
        for step in range(starts[attempt], steps):
            owner[step] = attempt
    covered: dict[int, list[Entry]] = defaultdict(list)
    done = 0
    for attempt, ranks in history.items():
        for entry in (entry for rank in ranks for entry in rank):
            if owner.get(entry.step) == attempt:
                covered[entry.step].append(entry)
        done += len({entry.step for rank in ranks for entry in rank if entry.step < steps})
    twice = skipped = altered = 0
    problems: list[str] = []
    for step in range(steps):
        doubled, missing = _coverage(covered[step], sampler.begin(step, 0), sampler.train.global_batch)
        wrong = sum(checksum(sampler.indices(entry.begin, entry.count)) != entry.checksum for entry in covered[step])
        if doubled or missing or wrong:
            problems.append(f"step {step}: {doubled} samples twice, {missing} skipped, {wrong} records altered")
        twice, skipped, altered = twice + doubled, skipped + missing, altered + wrong
    return Audit(
        steps, steps * sampler.train.global_batch, twice, skipped, altered, max(0, done - steps), tuple(problems)
    )


def _coverage(entries: Iterable[Entry], begin: int, count: int) -> tuple[int, int]:
    """Samples that are there twice, and samples that are not there, in [begin, begin + count)."""
    twice, position = 0, begin
    missing = 0
    for entry in sorted(entries, key=lambda entry: entry.begin):
        missing += max(0, entry.begin - position)
        twice += max(0, min(position, entry.begin + entry.count) - entry.begin)
        position = max(position, entry.begin + entry.count)
    return twice, missing + max(0, begin + count - position)


def audit(run: RunDir) -> Audit | None:
    """What the committed history was trained on; None where the run has no steps (a script, or not begun)."""
    history = event_log.read(run.events)
    sizes = [event["samples"] for event in history if event["event"] == "training" and event["samples"]]
    if not sizes:
        return None
    from dtrain.data.sampler import Sampler

    saved = max((event["step"] for event in history if event["event"] == "checkpoint"), default=0)
    sampler = Sampler(sizes[-1], run.job().train)
    return compare(sample_ledger.attempts(run), attempt_starts(history), saved, sampler)
