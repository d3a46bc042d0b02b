"""A worker's control channel to its agent: reports go up, and the agreement on a step to leave at comes down.

To save and leave, all ranks must stop before the same step (a drain barrier). The supervisor asks each for a stop proposal, the
first step that it will not begin without an answer, and answers with the highest proposal: every rank can still reach that step, and
none is beyond it. So the agreement costs the training loop no collective, only the comparison of two numbers.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from contextlib import suppress
from typing import Any

from dtrain.api.protocol import TAG, DebuggerInput, DebugStop, LeaveAt, ProfileSteps, ProposeStop
from dtrain.api.reports import Report, StopAsked, StopProposal
from dtrain.common.files import Descriptor
from dtrain.common.framing import Frames, framed
from dtrain.common.message import Message, tagged, untagged

READ_BYTES = 1 << 16


class ControlChannel:
    """The worker's end; a thread of its own listens once `listen` was called."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._file = Descriptor(end.fileno())
        self._frames = Frames()
        self._received: list[bytes] = []
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
        """Rank of this worker."""
        self.profile: ProfileSteps | None = None
        """The newest request for a profile, until a step takes it."""
        self.debug: DebugStop | None = None
        """Where a debugger is wanted, until it is there."""
        self.typed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        """Lines for the debugger in this rank; None: nobody types any more."""

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    def assignment(self) -> Any:
        """The first message: what this worker is to do; raises `EOFError` if the agent is gone."""
        assignment: Any = self._receive()
        self._next, self.rank = assignment.step, assignment.rank_info.rank
        return assignment

    def listen(self) -> None:
        """Hear the supervisor from now on, if it is not heard yet."""
        if self._listening:
            return
        self._listening = True
        threading.Thread(target=self._listen, name="dtrain-control", daemon=True).start()

    @property
    def connected(self) -> bool:
        """Whether reports can be sent; False: user code has closed the socket."""
        return self._file.is_open

    def report(self, report: Report) -> None:
        """Send a report to the supervisor; without an agent, this process is about to be killed anyway."""
        frame = framed(json.dumps(tagged(report, TAG)).encode())
        with self._sending, suppress(OSError):
            if self.connected:
                self._socket.sendall(frame)

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
        """Send and receive nothing more."""
        if not self.connected:
            self._socket.detach()  # the number is another file's
        self._socket.close()

    def _receive(self) -> Message:
        """Wait for the next message; raises `EOFError` at the agent's end."""
        while not self._received:
            if not self.connected:
                raise EOFError
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise EOFError
            self._received += self._frames.add(data)
        return untagged(json.loads(self._received.pop(0)), TAG)

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._on_command(self._receive())

    def _on_command(self, command: Message) -> None:
        if isinstance(command, ProfileSteps):
            self.profile = command
        elif isinstance(command, DebugStop):
            self.debug = command
        elif isinstance(command, DebuggerInput):
            if command.rank == self.rank:
                self.typed.put(command.text)
        elif isinstance(command, LeaveAt):
            with self._changed:
                self._leave = command.step
                self._changed.notify_all()
        elif isinstance(command, ProposeStop):
            with self._changed:
                self._proposal = proposal = self._next + self._begun
                self._changed.notify_all()
            self.report(StopProposal(proposal))
