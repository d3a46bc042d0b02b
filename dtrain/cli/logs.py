"""`dtrain logs`: every worker's output, and what happened to the run, as it comes."""

from __future__ import annotations

import time
from pathlib import Path

from dtrain.cli import queries, render
from dtrain.cli.live_view import LineReader
from dtrain.common.errors import UsageError
from dtrain.run.event_log import Reader
from dtrain.run.folder import RunDir
from dtrain.run.status import RunState

POLL_SECONDS = 0.2
ASK_SECONDS = 2.0
"""Between two questions to the cluster of a run that is not supervised."""
SCAN_SECONDS = 2.0
"""Between two looks for logs of new ranks; a folder with thousands of ranks is not listed more often."""


class LogPrinter:
    """Prints new lines of the chosen ranks, each with its rank; with events, what happened in between."""

    def __init__(self, run: RunDir, ranks: list[int], *, events: bool) -> None:
        self._run = run
        self._ranks = ranks
        self._readers: dict[int, LineReader] = {}
        self._events = Reader(run.events) if events else None
        self._state = RunState()
        self._scan_at = 0.0

    def print_new(self, *, last: bool) -> None:
        """Everything since the last call; with `last`, unfinished lines too."""
        if last or time.monotonic() >= self._scan_at:
            self._scan_at = time.monotonic() + SCAN_SECONDS
            self._find_logs()
        for rank, reader in sorted(self._readers.items()):
            for text in reader.new(rest=last):
                print(f"rank {rank} | {text}")
        for event in self._events.new() if self._events else ():
            self._state.add(event)
            line = render.line(event, self._state)
            if line:
                print(f"{render.clock(event)}  {line}", flush=True)

    def _find_logs(self) -> None:
        for rank, path in rank_logs(self._run).items():
            if not self._ranks or rank in self._ranks:
                self._readers.setdefault(rank, LineReader(path, skip=False))


def rank_logs(run: RunDir) -> dict[int, Path]:
    """Rank → its log."""
    return {int(path.stem.split("-")[1]): path for path in sorted(run.logs.glob("rank-*.log"))}


def print_logs(run: RunDir, ranks: list[int], *, follow: bool) -> None:
    """The workers' output so far; when followed, new lines and events until the run ends."""
    there = rank_logs(run)
    missing = [rank for rank in ranks if rank not in there]
    if missing and not follow:
        known = f"it has ranks 0 to {max(there)}" if there else "no worker has started yet"
        raise UsageError(f"the run {run.id} has no log of rank {missing[0]}: {known}")
    printer = LogPrinter(run, ranks, events=follow and not ranks)
    over, ask_at = not follow, 0.0
    while True:
        if follow and time.monotonic() >= ask_at:
            over = not queries.goes_on(run)
            ask_at = time.monotonic() + (0.0 if run.supervised() else ASK_SECONDS)
        printer.print_new(last=over)
        if over:
            return
        time.sleep(POLL_SECONDS)
