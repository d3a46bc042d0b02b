"""`dtrain logs`: every worker's output, and what happened to the run, as it comes."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from dtrain.cli.live_view import LineReader
from dtrain.common import durations
from dtrain.common.errors import UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.control import state
from dtrain.record import history, log_times
from dtrain.record.event_log import Reader
from dtrain.record.events import WorkersStarted
from dtrain.record.folder import RunDir
from dtrain.record.status import RunState
from dtrain.show import render

POLL_SECONDS = 0.2
ASK_SECONDS = 2.0
"""Between two questions to the cluster of a run that is not supervised."""
SCAN_SECONDS = 2.0
"""Pause between two looks for logs of new ranks; a folder with thousands of ranks is not listed more often."""
BEGIN = re.compile(r"--- dtrain: attempt (\d+), rank \d+, from step \d+ ---")
"""The first line that a worker writes."""


Line = tuple[int, int, str]
"""(rank, attempt, text)"""


@dataclass(frozen=True)
class Filter:
    """A choice of lines."""

    ranks: Sequence[int] = ()
    """Empty: all."""
    attempt: int | None = None
    pattern: re.Pattern[str] | None = None
    fold: bool = False
    """Whether lines that several ranks wrote are shown once."""
    since: float = 0.0
    """Not what was written before (seconds since 1970), as far as that is known."""
    last: int | None = None
    """Of each rank, only so many of the newest lines that are there when it is looked at first."""

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.ranks and self.attempt is None and self.pattern is None and not self.since and self.last is None


class Places:
    """The nodes that ranks were on in each attempt."""

    def __init__(self, run: RunDir) -> None:
        self._started = Reader(run.events, WorkersStarted)
        self._node: dict[tuple[int, int], str] = {}
        self._several = False

    def learn(self) -> None:
        """Take in what was logged since the last time."""
        for event in self._started.new():
            if isinstance(event, WorkersStarted):
                self._node |= {(event.attempt, int(rank)): event.node for rank in event.pids}
        self._several = len(set(self._node.values())) > 1

    def prefix(self, attempt: int, rank: int) -> str:
        """Format the rank in front of a line, with its node if there are several."""
        node = self._node.get((attempt, rank), "") if self._several else ""
        return f"{node} rank {rank}".lstrip()


class LogPrinter:
    """Prints new lines of the chosen ranks, each with its rank; with events, what happened in between."""

    def __init__(self, run: RunDir, wanted: Filter, *, events: bool) -> None:
        self._run = run
        self._wanted = wanted
        self._readers: dict[int, LineReader] = {}
        self._attempts: dict[int, int] = {}
        """Rank → the attempt that its newest line belongs to."""
        self._begun: set[int] = set()
        """Ranks of which lines were read."""
        self._places = Places(run)
        self._events = Reader(run.events) if events else None
        self._state = RunState()
        self._scan_at = 0.0

    def print_new(self, *, last: bool) -> None:
        """Everything since the last call; with `last`, unfinished lines too."""
        if last or time.monotonic() >= self._scan_at:
            self._scan_at = time.monotonic() + SCAN_SECONDS
            self._find_logs()
        self._places.learn()
        new = [
            (rank, *line) for rank, reader in sorted(self._readers.items())
            for line in self._newest(rank, self._wanted_lines(rank, reader.new(rest=last)))
        ]  # fmt: skip
        for prefix, text in self._folded(new) if self._wanted.fold else self._with_places(new):
            print(f"{prefix} | {text}")
        for event in self._events.new() if self._events else ():
            self._state.add(event)
            line = render.line(event, self._state)
            if line:
                print(f"{render.clock(event)}  {line}", flush=True)

    def _wanted_lines(self, rank: int, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """(attempt, line) of those that are to be shown."""
        for text in texts:
            if begun := BEGIN.match(text):
                self._attempts[rank] = int(begun[1])
            attempt = self._attempts.get(rank, 0)
            pattern = self._wanted.pattern
            if self._wanted.attempt in (None, attempt) and (not pattern or pattern.search(text)):
                yield attempt, text

    def _newest(self, rank: int, lines: Iterator[tuple[int, str]]) -> Iterable[tuple[int, str]]:
        """All lines, or of a rank that is looked at first the last ones, if only so many are wanted."""
        if self._wanted.last is None or rank in self._begun:
            return lines
        self._begun.add(rank)
        return deque(lines, self._wanted.last)

    def _with_places(self, lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
        for rank, attempt, text in lines:
            yield self._places.prefix(attempt, rank), text

    def _folded(self, lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
        """Yield each line once, at its first rank, with all ranks that wrote the same as often."""
        waiting: dict[str, Counter[int]] = defaultdict(Counter)
        for rank, _, text in lines:
            waiting[text][rank] += 1
        shown: Counter[tuple[int, str]] = Counter()
        for rank, attempt, text in lines:
            if shown[rank, text]:
                shown[rank, text] -= 1
                continue
            together = sorted(one for one, count in waiting[text].items() if count)
            waiting[text].subtract(together)
            shown.update((one, text) for one in together if one != rank)
            yield self._places.prefix(attempt, rank) if together == [rank] else render.ranks(together), text

    def _find_logs(self) -> None:
        for rank, path in self._run.rank_logs().items():
            if rank not in self._readers and (not self._wanted.ranks or rank in self._wanted.ranks):
                self._readers[rank] = LineReader(path, skip=False, offset=self._offset(path))

    def _offset(self, path: Path) -> int:
        """Where to begin in a log, at the beginning of a line."""
        if not self._wanted.since:
            return 0
        offset = log_times.offset_at(path, self._wanted.since)
        if offset is None:
            raise UsageError(
                f"when the lines of {path.name} were written is not known: it is a copy from remote storage, or of an older run",
                "Leave out --since, or use --grep.",
            )
        return log_times.line_at(path, offset)


def chosen(
    ranks: Sequence[int],
    attempt: int | None,
    grep: str | None,
    since: str | None,
    *,
    fold: bool,
    last: int | None = None,
) -> Filter:
    """The lines that were asked for; raises `UsageError` for a pattern or a time that is none."""
    try:
        return Filter(ranks, attempt, re.compile(grep) if grep else None, fold, moment(since) if since else 0.0, last)
    except re.error as error:
        raise UsageError(
            f"--grep {grep}: {error}", "It is a regular expression of Python; put \\ before special characters."
        ) from None


def moment(text: str) -> float:
    """Seconds since 1970 of a time as a person writes it: `10m` (ago), `03:00` (the last time that it was), `2026-11-24 03:00`;
    raises `UsageError`."""
    now = datetime.now()
    if (ago := durations.seconds_of(text)) is not None:
        return now.timestamp() - ago
    for form in ("%H:%M", "%H:%M:%S"):
        with suppress(ValueError):
            at = datetime.combine(now.date(), datetime.strptime(text, form).time())
            return (at if at <= now else at - timedelta(days=1)).timestamp()
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    raise UsageError(f"--since {text}: not a time", "Write it like 10m, 2h, 03:00 or '2026-11-24 03:00'.")


def print_logs(run: RunDir, wanted: Filter, *, follow: bool) -> None:
    """The workers' output so far; when followed, new lines and events until the run ends."""
    there = run.rank_logs()
    missing = [rank for rank in wanted.ranks if rank not in there]
    if missing and not follow:
        known = f"it has ranks 0 to {max(there)}" if there else "no worker has started yet"
        raise UsageError(f"the run {run.id} has no log of rank {missing[0]}: {known}")
    attempts = history.attempts(run)
    if wanted.attempt is not None and not follow and not 1 <= wanted.attempt <= attempts:
        raise UsageError(f"the run {run.id} has no attempt {wanted.attempt}: it has {attempts}")
    printer = LogPrinter(run, wanted, events=follow and wanted.everything)
    over, ask_at = not follow, 0.0
    while True:
        if follow and time.monotonic() >= ask_at:
            over = not state.goes_on(run)
            ask_at = time.monotonic() + (0.0 if run.supervised() else ASK_SECONDS)
        printer.print_new(last=over)
        if over:
            return
        time.sleep(POLL_SECONDS)
