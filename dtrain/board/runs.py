"""The runs of a folder as the board shows them: of each event log, only what is new is read, and of long curves as much as can be seen."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dtrain.agent import gpu_leases
from dtrain.common.errors import DtrainError, UsageError
from dtrain.control.state import RunRow, Watched, named, row_of
from dtrain.record import folder
from dtrain.record.event_log import Reader
from dtrain.record.folder import RunDir
from dtrain.record.metric_curves import MetricCurves, ThinCurve
from dtrain.record.status import RunState, fold

SLICE_SECONDS = 0.05
"""A long event log is read for this long at a time: the other runs wait."""
QUIET_SECONDS = 0.15
"""Nothing is read so soon after a question: a page that is being drawn has the processor for itself."""
MOST_QUIET_SECONDS = 0.5
END_BYTES = 1024
"""Of an event log, which say how a run is doing before the whole is read."""
LOOK_SECONDS = 1.0
ASK_SECONDS = 15.0
"""Between two looks at a run that no supervisor on this machine has: they ask its cluster and its remote storage."""
IDLE_SECONDS = 15.0
"""Without a page that asks, nothing is read."""
READING = "reading"
"""State of a run whose event log was not read to its end yet."""


class SeenRun:
    """One run, up to what was read of it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.version = 0
        """Of the board, when the row changed last."""
        self.row = _glimpse(run)
        self.state = RunState()
        self.whole = False
        """Whether the event log was read to its end."""
        self.lock = threading.Lock()
        self._gpus: tuple[str, ...] = ()
        self._names: tuple[float, tuple[dict[str, str], str]] = -1.0, ({}, "")
        self._next_at = 0.0
        self._begin()

    def _begin(self) -> None:
        self.curves = MetricCurves(ThinCurve)
        self._watched = Watched(self.run, self.curves.add)

    def is_due(self) -> bool:
        """Whether there is more to read, or its supervisor or its cluster may know more."""
        return not self.whole or self.run.log_bytes() != self._watched.position or time.monotonic() >= self._next_at

    def look(self, gpus: tuple[str, ...] | None = None) -> bool:
        """Read what is new, for a short time; whether its row has changed. `gpus`: those that it has now."""
        before = self.row
        with self.lock:
            self._gpus = self._gpus if gpus is None else gpus
            if self.run.log_bytes() < self._watched.position:  # another supervisor's log took its place
                self._begin()
            try:
                self._read()
            except DtrainError as error:
                self.row, self.whole = RunRow(self.run.id, "unreadable", reason=error.message), True
                self._next_at = time.monotonic() + ASK_SECONDS
        return self.row != before

    def _read(self) -> None:
        self.whole = self._watched.read(time.monotonic() + SLICE_SECONDS)
        if not self.whole:
            return
        self.state = state = self._watched.state()
        over = state.exit_code is not None and not state.storage
        pause = LOOK_SECONDS if self.run.locked() else 4 * ASK_SECONDS if over else ASK_SECONDS
        self._next_at = time.monotonic() + pause
        self.row = row_of(state, *self._named(), self._gpus)

    def _named(self) -> tuple[dict[str, str], str]:
        """Its tags and its note, read again when a person has started or resumed it."""
        if self._names[0] != self.run.started:
            self._names = self.run.started, named(self.run)
        return self._names[1]


def _glimpse(run: RunDir) -> RunRow:
    """One run in a list, as the end of its event log has it."""
    try:
        state = fold(Reader(run.events, begin=max(0, run.log_bytes() - END_BYTES)).new())
    except (DtrainError, OSError):
        state = RunState()
    known = state.outcome if state.exit_code is not None else READING
    return replace(row_of(state, {}, ""), run=run.id, state=known, started=run.started or None)


class Board:
    """All runs of a folder, looked at again and again while somebody asks for them."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._runs: dict[str, SeenRun] = {}
        self._version = 1
        self._asked_at, self._gave_way_at = time.monotonic(), 0.0
        self._wanted: SeenRun | None = None
        """The run that was asked for last: it is read first."""
        self._over = threading.Event()
        self._list()
        self._thread = threading.Thread(target=self._keep_up, name="dtrain-board", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Read no more."""
        self._over.set()
        self._thread.join()

    def changes(self, since: int) -> tuple[int, list[str], list[RunRow]]:
        """The board's version, the ids of all runs, the newest first, and the rows that changed after an earlier version."""
        version, seen = self._version, self._runs
        return version, list(seen), [one.row for one in seen.values() if one.version > since]

    def seen(self, run_id: str) -> SeenRun:
        """One run as it is now; raises `UsageError` if there is none of this id."""
        found = self._runs.get(run_id)
        if found is None:
            raise UsageError(f"there is no run {run_id} in {self.root}")
        self._wanted = found
        if found.is_due() or found.state.exit_code is None:
            self._look(found)
        return found

    def ask(self) -> None:
        """Somebody looks at the page: go on reading."""
        self._asked_at = time.monotonic()

    def _keep_up(self) -> None:
        while not self._over.is_set():
            if time.monotonic() - self._asked_at > IDLE_SECONDS:
                self._over.wait(QUIET_SECONDS)
                continue
            with suppress(OSError):  # a folder that was removed meanwhile
                self._list()
                self._look_at_all()
            if all(one.whole for one in self._runs.values()):
                self._over.wait(LOOK_SECONDS)

    def _look_at_all(self) -> None:
        held = gpu_leases.of_runs()
        for one in self._runs.values():
            self._give_way()
            if self._over.is_set():
                return
            if (wanted := self._wanted) and not wanted.whole:
                self._look(wanted)
            if one.is_due():
                with suppress(OSError):
                    self._look(one, tuple(held.get(str(one.run.path), ())))

    def _give_way(self) -> None:
        """Wait until the page that asks has been drawn, for half of the time at most."""
        begun = now = time.monotonic()
        if begun < self._gave_way_at + MOST_QUIET_SECONDS:
            return
        while now < min(self._asked_at + QUIET_SECONDS, begun + MOST_QUIET_SECONDS) and not self._over.wait(0.02):
            now = time.monotonic()
        if now > begun:
            self._gave_way_at = now

    def _look(self, one: SeenRun, gpus: tuple[str, ...] | None = None) -> None:
        if one.look(gpus):
            self._version += 1
            one.version = self._version

    def _list(self) -> None:
        """The runs that are there, the one that was started last first."""
        known, found = self._runs, dict[str, SeenRun]()
        for run in reversed(folder.all_runs(self.root)):
            seen = known.get(run.id)
            if seen is None:
                seen = SeenRun(run)
                self._version += 1
                seen.version = self._version
            found[run.id] = seen
        self._runs = found
