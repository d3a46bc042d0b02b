"""Ranks of a run that are stopped in a debugger, and the terminal that is connected to one of them (`dtrain debug`)."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dtrain.api import protocol, reports
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record import debug_session, events
from dtrain.record.debug_session import DebugLine, DebugOutput, DebugRequest
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir

POLL_SECONDS = 0.05
SILENT_SECONDS = 15.0
"""A terminal that has not touched its file for so long is gone."""
MOST_TEXT = 1 << 16
"""Characters that are kept for a terminal which is not there yet."""
DebuggerReport = events.DebuggerStopped | reports.DebuggerOutput | reports.DebuggerResumed


@dataclass(frozen=True)
class Typed:
    """Inbox item: a line from the terminal of a session."""

    request: str
    text: str | None
    """None: nobody types any more."""


class Debugged(Protocol):
    """The part of an attempt that debugging needs."""

    number: int

    @property
    def over(self) -> bool:
        """Whether the attempt has ended, or was asked to."""

    def debug(self, request: DebugRequest) -> int | None:
        """Tell all workers where to stop; the step, if one is meant."""

    def tell(self, rank: int, command: protocol.WorkerCommand) -> None:
        """Send this to the node of a rank."""

    def has_rank(self, rank: int) -> bool:
        """Whether the rank runs."""


@dataclass()
class _Stopped:
    """A rank in a debugger."""

    attempt: Debugged
    reason: str
    where: str
    text: str = ""
    """Output of the debugger since then."""
    prompt: str = ""


@dataclass()
class _Session:
    """A terminal that is connected."""

    request: str
    attempt: Debugged
    wanted: DebugRequest
    link: _Link
    rank: int | None
    """None: none that it could talk to has stopped yet."""


class Debugging:
    """The debuggers of one run; no part of the supervision depends on them, but nothing counts as a hang while one is open."""

    def __init__(self, run: RunDir, log: EventLog, put: Callable[[Typed], None]) -> None:
        self._run = run
        self._log = log
        self._put = put
        self._stopped: dict[int, _Stopped] = {}
        self._since: dict[int, float] = {}
        """Ranks that the event log has as stopped: since when (monotonic seconds). Single steps are not logged."""
        self._session: _Session | None = None

    @property
    def open(self) -> bool:
        """Whether a rank is stopped, or a terminal is connected and may stop one."""
        return bool(self._stopped) or self._session is not None

    def ask(self, request: str, wanted: DebugRequest, attempt: Debugged | None) -> None:
        """A terminal wants to debug a rank."""
        link = _Link(self._run.debug_session(request), request, self._put)
        problem = self._problem(wanted, attempt)
        if problem or attempt is None:
            link.say(DebugOutput(problem or "no worker runs now", notice=True, ended=True))
            return
        self._session = _Session(request, attempt, wanted, link, None)
        waiting = [rank for rank in self._stopped if wanted.rank in (None, rank)]
        if waiting and not wanted.on_exception and wanted.at_step is None:
            self._connect(self._session, waiting[0])
            return
        step = attempt.debug(wanted)
        whose = f"rank {wanted.rank or 0}" if wanted.rank is not None or not wanted.on_exception else "the first rank"
        when = "that an exception ends" if wanted.rank is None else "when an exception ends it"
        link.say(
            DebugOutput(
                f"{whose} stops {when}; until then the run goes on" if wanted.on_exception
                else f"{whose} stops in step {step}, or in its next one if it is beyond; the others wait for it there",
                notice=True,
            )
        )  # fmt: skip

    def _problem(self, wanted: DebugRequest, attempt: Debugged | None) -> str:
        if self._session:
            return "another terminal debugs this run"
        if attempt is None or attempt.over:
            return "no worker runs now"
        if wanted.rank is not None and not attempt.has_rank(wanted.rank):
            return f"no rank {wanted.rank} runs now"
        return ""

    def hear(self, attempt: Debugged, rank: int, report: DebuggerReport) -> None:
        """Handle a worker's report of its debugger."""
        session = self._session
        if isinstance(report, events.DebuggerStopped):
            self._on_stopped(attempt, rank, report)
        elif isinstance(report, reports.DebuggerOutput):
            if session and session.rank == rank:
                session.link.say(DebugOutput(report.text, report.prompt))
            if stopped := self._stopped.get(rank):
                stopped.text = (stopped.text + report.text)[-MOST_TEXT:]
                stopped.prompt = report.prompt
        else:
            self._on_left(attempt, rank, ended=report.ended)

    def typed(self, line: Typed) -> None:
        """A line from the terminal, or its end."""
        session = self._session
        if session is None or session.request != line.request:
            return
        if session.rank is not None:
            self._tell(session.attempt, session.rank, line.text)
        if line.text is None:
            self._end_session("left; the run goes on")

    def tick(self) -> None:
        """Time has passed: an attempt that ends or is to end takes its debuggers with it."""
        for rank, stopped in list(self._stopped.items()):
            if stopped.attempt.over:
                self._tell(stopped.attempt, rank, None)
                del self._stopped[rank]
        if self._session and self._session.attempt.over:
            self._end_session("the workers end")

    def _on_stopped(self, attempt: Debugged, rank: int, report: events.DebuggerStopped) -> None:
        self._stopped[rank] = _Stopped(attempt, report.reason, report.where)
        if rank not in self._since:
            self._since[rank] = time.monotonic()
            self._log.add(replace(report, attempt=attempt.number))
        session = self._session
        if session and session.rank is None and session.wanted.rank in (None, rank):
            self._connect(session, rank)

    def _connect(self, session: _Session, rank: int) -> None:
        session.rank = rank
        stopped = self._stopped[rank]
        why = {"breakpoint": f"at breakpoint(), {stopped.where}", "exception": f"after {stopped.where}"}
        session.link.say(
            DebugOutput(f"rank {rank} is stopped {why.get(stopped.reason, f'in {stopped.where}')}", notice=True)
        )
        if stopped.prompt:
            session.link.say(DebugOutput(stopped.text, stopped.prompt))

    def _on_left(self, attempt: Debugged, rank: int, *, ended: bool) -> None:
        self._stopped.pop(rank, None)
        if ended:
            self._log_left(attempt, rank)
            if self._session and self._session.rank == rank:
                self._end_session(f"rank {rank} goes on")

    def _log_left(self, attempt: Debugged, rank: int) -> None:
        if (since := self._since.pop(rank, None)) is not None:
            seconds = round(time.monotonic() - since, 3)
            self._log.add(events.DebuggerLeft(attempt=attempt.number, rank=rank, seconds=seconds))

    def _end_session(self, why: str) -> None:
        session, self._session = self._session, None
        assert session is not None
        if session.rank is None and not session.attempt.over:  # no rank is to stop for nobody
            session.attempt.debug(DebugRequest(rank=-1))
        if session.rank is not None and session.rank not in self._stopped:
            self._log_left(session.attempt, session.rank)
        session.link.say(DebugOutput(why, notice=True, ended=True))

    def _tell(self, attempt: Debugged, rank: int, text: str | None) -> None:
        attempt.tell(rank, protocol.DebuggerInput(attempt.number, rank, text))


class _Link:
    """The two files of a session, in a thread of its own: the run folder may be slow."""

    def __init__(self, folder: Path, request: str, put: Callable[[Typed], None]) -> None:
        self._folder = folder
        self._request = request
        self._put = put
        self._said: queue.SimpleQueue[DebugOutput] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="dtrain-debugging", daemon=True).start()

    def say(self, output: DebugOutput) -> None:
        """Queue the output without waiting."""
        self._said.put(output)

    def _work(self) -> None:
        """Until the session ends, or its terminal is gone."""
        box = debug_session.Mailbox(self._folder / debug_session.INPUT)
        touched, since = 0, time.monotonic()
        while True:
            with suppress(queue.Empty):
                output = self._said.get(timeout=POLL_SECONDS)
                with suppress(OSError):
                    debug_session.append(self._folder / debug_session.OUTPUT, output)
                if output.ended:
                    return
            try:
                typed = debug_session.lines(box)
                at = (self._folder / debug_session.INPUT).stat().st_mtime_ns
            except (OSError, ValueError, TypeError):
                typed, at = [DebugLine(None)], 0
            if at != touched:
                touched, since = at, time.monotonic()
            elif time.monotonic() - since > SILENT_SECONDS:
                typed = [DebugLine(None)]
            for line in typed:
                self._put(Typed(self._request, line.text))
                if line.text is None:
                    self._say_rest()
                    return

    def _say_rest(self) -> None:
        """The last words, for a terminal that left in order."""
        with suppress(queue.Empty, OSError):
            while True:
                debug_session.append(self._folder / debug_session.OUTPUT, self._said.get(timeout=1.0))
