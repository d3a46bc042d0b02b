"""Whether a run is to stop, and why."""

from __future__ import annotations

from collections.abc import Callable

from dtrain.common.errors import Exit
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.supervisor.leaving.stop_request import INTERRUPTED, StopMode
from dtrain.supervisor.outcome import RunResult


class Stopping:
    """The requests to stop one run so far."""

    def __init__(self, log: EventLog, *, requeues: bool) -> None:
        self._log = log
        self.requeues = requeues
        """Whether the cluster can start the run again."""
        self._preempted = False
        """The cluster wants the run to leave, and no person does."""
        self.mode = StopMode.NONE
        self.reason = ""

    @property
    def asked(self) -> bool:
        """Whether somebody wants the run to stop."""
        return self.mode is not StopMode.NONE

    @property
    def at_once(self) -> bool:
        """Whether to stop without saving."""
        return self.mode is StopMode.IMMEDIATE

    def request(self, mode: StopMode, why: str, *, preempted: bool = False) -> None:
        """Somebody wants the run to stop; whoever asks twice means at once."""
        self._preempted = preempted
        self.mode = StopMode.IMMEDIATE if self.asked or mode is StopMode.IMMEDIATE else StopMode.GRACEFUL
        self.reason = self.reason or why
        self._log.add(events.StopRequested(why=why, now=self.at_once))

    def left(self, what: str, excluded: Callable[[], tuple[str, ...]]) -> RunResult:
        """The result of a run that was left; `what` follows the reason for it, `excluded` gives the nodes to keep it off if it is
        started again."""
        interrupted = self.at_once and self.reason == INTERRUPTED
        code = Exit.INTERRUPTED if interrupted else Exit.RESUMABLE
        requeue = self._preempted and self.requeues
        return RunResult(code, f"{self.reason}{what}", requeue=requeue, exclude=excluded() if requeue else ())
