"""The first operation whose tensors differ between two runs of a drill, from the logs that their workers wrote. Pure, but for reading."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest

from dtrain.api.operations import Entry
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import from_dict
from dtrain.job.job import Job
from dtrain.launch import registry
from dtrain.record.folder import RunDir

Log = dict[int, list[Entry]]
"""Step → the operations of a rank in the last attempt that did it."""


@dataclass(frozen=True)
class Difference:
    """Where one rank's operations of a step part from those of the undisturbed run."""

    number: int
    """Of operations of the undisturbed run before it."""
    mine: Entry
    theirs: Entry
    only_mine: Entry | None = None
    """The entry that this run alone has just before it, on another line of the user's."""


def not_compared(job: Job) -> str:
    """Why nothing can be said about the operations of a job; '' if it can."""
    known = registry.strategy_of(job).knows_operations
    if known and not job.function:
        return ""
    what = "a function" if known else f"the strategy '{job.strategy.name}'"
    return f"the operations of {what} are not compared, only those of tasks under PyTorch's own strategies"


def found(run: RunDir, undisturbed: RunDir, steps: range) -> str:
    """Describe the first difference in steps that both logged; '' if there is no such step."""
    mine, theirs = logs(run), logs(undisturbed)
    ranks = sorted(mine.keys() & theirs.keys())
    both = [step for step in steps if any(mine[rank].get(step) and theirs[rank].get(step) for rank in ranks)]
    if not both:
        return ""
    for step in both:
        parted = [
            (difference.number, rank, difference)
            for rank in ranks
            if (difference := first_difference(mine[rank].get(step, []), theirs[rank].get(step, [])))
        ]
        if parted:
            _, rank, difference = min(parted, key=lambda one: one[:2])
            return f"the first operation that differs (both run once more): {text(difference, rank)}"
    return f"run once more, no operation of steps {both[0] + 1} to {both[-1] + 1} differs"


def logs(run: RunDir) -> dict[int, Log]:
    """Rank → its operations, by step."""
    ranks: dict[int, Log] = defaultdict(dict)
    for file in sorted(run.logs.glob("operations-*.log")):
        rank = int(file.stem.split("-")[-1])
        steps: Log = defaultdict(list)
        for entry in _entries(file.read_text().splitlines()):
            steps[entry.step].append(entry)
        ranks[rank] |= steps
    return ranks


def first_difference(mine: Sequence[Entry], theirs: Sequence[Entry]) -> Difference | None:
    """Of the operations that both runs did; those that only one of them did (the first step of an attempt prepares more) are left out."""
    at = before = 0
    for at, before, length in _common(mine, theirs):
        for offset in range(length):
            one, other = mine[at + offset], theirs[before + offset]
            if one.operation.made != other.operation.made:
                return Difference(before + offset, one, other, _just_before(mine, theirs, at + offset, before + offset))
    return None


def text(difference: Difference, rank: int) -> str:
    """Format the operation and what is known of the cause."""
    mine, theirs = difference.mine, difference.theirs
    one, other = mine.operation, theirs.operation
    said = f"step {mine.step + 1}, rank {rank}, {_named(mine)}"
    if one.given != other.given:
        said += ", and the tensors that it got differ already"
        if difference.only_mine:
            return f"{said}: only this run did {_named(difference.only_mine)} before it"
        if difference.number == 0:
            return f"{said}: it is the first of its step, so the batch, the weights or what comes from outside of the framework do"
        return f"{said}: they come from other ranks or from outside of the framework"
    pairs = zip_longest(one.numbers, other.numbers, fillvalue="nothing")
    unequal = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if unequal:
        return f"{said}, called with {unequal[0]}, undisturbed with {unequal[1]}, and the same tensors"
    return f"{said}, called with the same tensors and numbers"


def _common(mine: Sequence[Entry], theirs: Sequence[Entry]) -> Iterator[tuple[int, int, int]]:
    """Blocks of operations that both did: where they begin in each, and how long they are."""
    keys, others = [_key(one) for one in mine], [_key(one) for one in theirs]
    if keys == others:
        yield 0, 0, len(keys)
        return
    yield from SequenceMatcher(None, keys, others, autojunk=False).get_matching_blocks()


def _just_before(mine: Sequence[Entry], theirs: Sequence[Entry], at: int, before: int) -> Entry | None:
    """The first of those that this run alone did since the last that both did."""
    others = {_key(one) for one in theirs[:before]}
    begin = next((number for number in range(at, 0, -1) if _key(mine[number - 1]) in others), 0)
    # On the same line, the model is called: what its wrapper does in the first step of an attempt belongs there.
    alone = (one for one in mine[begin:at] if one.place and one.place != mine[at].place)
    return next(alone, None)


def _key(entry: Entry) -> tuple[str, str, int | None, str]:
    return entry.operation.name, entry.operation.phase, entry.shard, entry.place


def _named(entry: Entry) -> str:
    place = f" at {entry.place}" if entry.place else ""
    phase = entry.operation.phase
    if phase and entry.shard is not None:
        phase += f" of shard {entry.shard}"
    return f"{entry.operation.name}{place}" + (f" ({phase})" if phase else "")


def _entries(lines: Sequence[str]) -> Iterator[Entry]:
    """Read the whole entries: a rank that was killed may have left a part of one."""
    for line in lines:
        try:
            yield from_dict(Entry, json.loads(line))
        except ValueError:
            continue
