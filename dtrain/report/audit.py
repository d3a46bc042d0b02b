"""Checking from the sample ledgers that every committed step trained on its samples, none twice, none left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record import event_log, sample_ledger
from dtrain.record.events import BadStep, CheckpointSaved, StateTakenOver, TrainingStarted
from dtrain.record.folder import RunDir
from dtrain.record.history import attempt_starts
from dtrain.record.sample_ledger import Entry, LedgerFile, LeftOut, checksum, last_step

if TYPE_CHECKING:  # numpy costs time
    from dtrain.data.sampler import Sampler

ENTRIES_AT_ONCE = 100_000
"""Records in memory at a time, whatever the number of ranks and steps."""
PROBLEMS_KEPT = 100
WHY = {
    LeftOut.NONFINITE: "its loss or gradient was not finite",
    LeftOut.SPIKE: "its loss or gradient jumped",
    LeftOut.ROLLED_BACK: "the run had been rolled back because of it",
}
"""If the event that tells more is missing."""


@dataclass(frozen=True)
class Audit:
    """The samples that the committed history of a run was trained on."""

    steps: int
    samples: int
    twice: int
    """Samples that stand in more than one record of their committed step."""
    skipped: int
    """Samples of a committed step that no worker trained on."""
    altered: int
    """Records whose samples are not those that seed, epoch and step give; of a stream, steps for which a later attempt was given others."""
    repeated_steps: int = 0
    """Steps that a failure undid and that were trained again; they are no part of the committed history."""
    problems: tuple[str, ...] = ()
    """One line for each wrong step, the first ones only."""
    left_out: int = 0
    """Samples of committed steps that the run left out by itself, with a reason (`train.on_nonfinite`, `train.spike`, fp16)."""
    reasons: tuple[str, ...] = ()
    """One line for each such step, the first ones only."""
    took_over: tuple[str, ...] = ()
    """One line for each state of another run that this one went on from."""
    strange: tuple[str, ...] = ()
    """One line for each of them that is not what the other run saved."""

    @property
    def clean(self) -> bool:
        """Every sample of every committed step exactly once, but for those that were left out with a reason."""
        return not (self.twice or self.skipped or self.altered or self.strange)


def audit(run: RunDir) -> Audit | None:
    """Check the committed history; None if the run has no steps (a script, or not begun)."""
    history = event_log.read(run.events)
    sizes = [event.samples for event in history if isinstance(event, TrainingStarted) and event.samples is not None]
    if not sizes:
        return None
    from dtrain.data.sampler import Sampler

    saved = max((event.step for event in history if isinstance(event, CheckpointSaved)), default=0)
    sampler = Sampler(sizes[-1], run.job().train)
    known = {event.step: event.why for event in history if isinstance(event, BadStep) and event.left_out}
    found = compare(sample_ledger.attempts(run), attempt_starts(history), saved, sampler, known)
    taken = [event for event in history if isinstance(event, StateTakenOver)]
    told = tuple(
        f"at step {one.step} it went on from the state of {one.run}: dtrain audit {one.run} says how that was trained"
        for one in taken
    )
    return replace(found, took_over=told, strange=tuple(filter(None, (_strange(run, one) for one in taken))))


def _strange(run: RunDir, taken: StateTakenOver) -> str:
    """Describe what is wrong with a state that was taken over, or ''."""
    saved = [
        event.weights
        for event in event_log.read(run.path.with_name(taken.run) / run.events.name)
        if isinstance(event, CheckpointSaved) and event.step == taken.step
    ]
    if not saved:
        return f"{taken.run} is gone, or never saved step {taken.step}, from whose state this run went on"
    return (
        "" if taken.weights in saved else f"{taken.run} saved other weights at step {taken.step} than were taken over"
    )


def compare(
    ledgers: Mapping[int, list[LedgerFile]],
    starts: Mapping[int, int],
    steps: int,
    sampler: Sampler,
    known: Mapping[int, str] | None = None,
) -> Audit:
    """Check the first `steps` steps against the ledgers of each attempt: the last attempt that began at or before a step owns it.

    `starts` gives the step each attempt began at; what an older attempt did from there on was rolled back. `known` says why steps
    were left out."""
    from dtrain.data.sampler import UNKNOWN_SIZE

    batch = sampler.train.global_batch
    twice = skipped = altered = left_out = 0
    problems: list[str] = []
    reasons: list[str] = []
    streams = sampler.size == UNKNOWN_SIZE
    for step, entries in _owned_entries(ledgers, starts, steps):
        trained = [entry for entry in entries if not entry.left_out]
        # A step that some ranks trained on and others left out is wrong.
        doubled, missing = _coverage(trained or entries, sampler.begin(step, 0), batch)
        if entries and not trained:
            left_out += batch - missing
            if len(reasons) < PROBLEMS_KEPT:
                reasons.append(f"step {step} was left out: {(known or {}).get(step) or WHY[entries[0].left_out]}")
        wrong = 0 if streams else sum(not _of_positions(entry, sampler) for entry in entries)
        if (doubled or missing or wrong) and len(problems) < PROBLEMS_KEPT:
            problems.append(f"step {step}: {doubled} samples twice, {missing} skipped, {wrong} records altered")
        twice, skipped, altered = twice + doubled, skipped + missing, altered + wrong
    for step, earlier, later in _given_otherwise(ledgers, starts, sampler) if streams else ():
        altered += 1
        if len(problems) < PROBLEMS_KEPT:
            problems.append(
                f"step {step}: attempt {later} was given other samples by the stream than attempt {earlier}"
            )
    done = sum(_steps_done(ranks, steps) for ranks in ledgers.values())
    return Audit(
        steps, steps * batch, twice, skipped, altered, max(0, done - steps), tuple(problems), left_out, tuple(reasons)
    )


def _of_positions(entry: Entry, sampler: Sampler) -> bool:
    """Whether the checksum is that of the samples' numbers."""
    return checksum(sampler.indices(entry.begin, entry.count)) == entry.checksum


def _given_otherwise(
    ledgers: Mapping[int, list[LedgerFile]], starts: Mapping[int, int], sampler: Sampler
) -> Iterator[tuple[int, int, int]]:
    """Yield the steps that two attempts did with samples of other contents, however these were spread over workers, with both attempts.
    Records of an older dtrain have no contents."""
    ends = {
        attempt: min((last_step(ledger.path) or 0 for ledger in ranks), default=0) for attempt, ranks in ledgers.items()
    }
    for later, begin in sorted(starts.items()):
        for earlier in sorted(one for one, end in ends.items() if one < later and end > begin):
            for step in range(begin, min(ends[earlier], ends.get(later, 0))):
                one, other = (
                    [entry for ledger in ledgers[attempt] for entry in ledger.steps(step, step + 1)]
                    for attempt in (earlier, later)
                )
                contents = [entry for entry in (*one, *other) if not _of_positions(entry, sampler)]
                full = sum(entry.count for entry in one) == sum(entry.count for entry in other)
                if full and len(contents) == len(one) + len(other) and _sum(one) != _sum(other):
                    yield step, earlier, later


def _sum(entries: Iterable[Entry]) -> int:
    return sum(entry.checksum for entry in entries) % (1 << 32)


def _owned_entries(
    ledgers: Mapping[int, list[LedgerFile]], starts: Mapping[int, int], steps: int
) -> Iterator[tuple[int, list[Entry]]]:
    """Every step in order, with the records of the attempt that owns it; read in blocks of bounded size."""
    for attempt, first, last in _owners(starts, steps):
        ranks = ledgers.get(attempt, [])
        block = max(1, ENTRIES_AT_ONCE // max(1, len(ranks)))
        for begin in range(first, last, block):
            end = min(last, begin + block)
            found: dict[int, list[Entry]] = defaultdict(list)
            for rank in ranks:
                for entry in rank.steps(begin, end):
                    found[entry.step].append(entry)
            for step in range(begin, end):
                yield step, found[step]


def _owners(starts: Mapping[int, int], steps: int) -> list[tuple[int, int, int]]:
    """(attempt, first step, step after its last) in the order of steps; an attempt that owns no step is left out."""
    found: list[tuple[int, int, int]] = []
    end = steps
    for attempt in sorted(starts, reverse=True):
        if starts[attempt] < end:
            found.append((attempt, starts[attempt], end))
            end = starts[attempt]
    if end > 0:
        found.append((0, 0, end))
    return found[::-1]


def _steps_done(ranks: Iterable[LedgerFile], steps: int) -> int:
    """Steps below `steps` that any rank of an attempt recorded."""
    ends = [(first.step, last.step + 1) for rank in ranks if (first := rank.at(0)) and (last := rank.at(-1))]
    if not ends:
        return 0
    return max(0, min(steps, max(last for _, last in ends)) - min(first for first, _ in ends))


def _coverage(entries: Iterable[Entry], begin: int, count: int) -> tuple[int, int]:
    """Samples that are there twice, and samples that are missing, in [begin, begin + count)."""
    twice, position = 0, begin
    missing = 0
    for entry in sorted(entries, key=lambda entry: entry.begin):
        missing += max(0, entry.begin - position)
        twice += max(0, min(position, entry.begin + entry.count) - entry.begin)
        position = max(position, entry.begin + entry.count)
    return twice, missing + max(0, begin + count - position)
