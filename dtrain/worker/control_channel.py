"""A worker's control channel to its agent: reports go up, and the agreement on a step to leave at comes down.

To save and leave, all ranks must stop before the same step (a drain barrier). The supervisor asks each for a stop proposal, the
first step that it will not begin without an answer, and answers with the highest proposal: every rank can still reach that step, and
none is beyond it. So the agreement costs the training loop no collective, only the comparison of two numbers.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from dtrain.api.protocol import DebuggerInput, DebugStop, ProfileWindow
from dtrain.api.reports import Report, StopAsked, StopProposal


class ControlChannel:
    """The worker's end; a thread of its own listens once `listen` was called."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._next = 0
        """The step that was begun last or, before any was, the first."""
        self._begun = False
        self._proposal: int | None = None
        self._leave: int | None = None
        self._asked = False
        self._listening = False
        self.rank = 0
        """Of this worker."""
        self.profile: ProfileWindow | None = None
        """The newest request for a profile, until a step takes it."""
        self.debug: DebugStop | None = None
        """Where a debugger is wanted, until it is there."""
        self.typed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        """Lines for the debugger in this rank; None: nobody types any more."""

    def fileno(self) -> int:
        """Of the pipe."""
        return self._pipe.fileno()

    def assignment(self) -> Any:
        """What this worker is to do, the first thing it is told; raises `EOFError` if the agent is gone."""
        assignment = self._pipe.recv()
        self._next, self.rank = assignment.step, assignment.rank_info.rank
        return assignment

    def listen(self) -> None:
        """Hear the supervisor from now on, if it is not heard yet."""
        if self._listening:
            return
        self._listening = True
        threading.Thread(target=self._receive, name="dtrain-control", daemon=True).start()

    def report(self, report: Report) -> None:
        """Tell the supervisor; if nobody listens any more, this process is about to be killed anyway."""
        with self._sending, suppress(OSError):
            self._pipe.send(report)

    def ask_to_stop(self, reason: str) -> None:
        """Have all ranks agree on a step to leave at; the next `may_begin` waits for the agreement."""
        with self._changed:
            asked, self._asked = self._asked, True
        if not asked:
            self.report(StopAsked(reason))

    def may_begin(self, step: int) -> bool:
        """Whether to do this step; False: the ranks agreed to leave before it. Waits at the proposed step for the agreement."""
        with self._changed:
            while self._leave is None and (self._asked or (self._proposal is not None and step >= self._proposal)):
                self._changed.wait()
            if self._leave is not None and step >= self._leave:
                return False
            self._next, self._begun = step, True
            return True

    def close(self) -> None:
        """Nothing more to say."""
        self._pipe.close()

    def _receive(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._on_command(self._pipe.recv())

    def _on_command(self, leave_at: int | ProfileWindow | DebugStop | DebuggerInput | None) -> None:
        """The agreed step, (None) the question for a proposal, a request for a profile, or what is for a debugger."""
        if isinstance(leave_at, ProfileWindow):
            self.profile = leave_at
            return
        if isinstance(leave_at, DebugStop):
            self.debug = leave_at
            return
        if isinstance(leave_at, DebuggerInput):
            if leave_at.rank == self.rank:
                self.typed.put(leave_at.text)
            return
        with self._changed:
            if leave_at is None:
                self._proposal = self._next + self._begun
            else:
                self._leave = leave_at
            self._changed.notify_all()
        if leave_at is None:
            assert self._proposal is not None
            self.report(StopProposal(self._proposal))
