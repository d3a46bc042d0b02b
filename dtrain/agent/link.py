"""The agent's link to the supervisor: JSON lines, commands in and events out (see `dtrain.api.protocol`)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

from dtrain.api.protocol import AgentEvent, Command, decode, encode, fragments
from dtrain.common import environment as variables


class SupervisorLink:
    """Two descriptors, for commands to this node or to all and for its events."""

    def __init__(self, node: str, commands: int, events: int) -> None:
        self.commands = commands
        """Descriptor to wait for."""
        self._node = node
        self._events = events
        self._buffer = b""
        self._line_bytes = int(os.environ.get(variables.LINE_BYTES, 0))
        self._sending = threading.Lock()
        self.closed = False
        """Nobody is there any more to work for, or the supervisor has ended this agent."""
        self.quit = False
        """The supervisor has ended this agent, and has all that it wants of it."""
        self.broken = False
        """Nothing that is sent arrives."""

    def send(self, event: AgentEvent) -> None:
        """Write one event, from any thread; if the supervisor's end is closed, the end of the commands is about to follow."""
        line = encode(event, self._node)
        with self._sending:
            try:
                for data in fragments(line, self._node, self._line_bytes or len(line)):
                    while data:
                        data = data[os.write(self._events, data) :]
            except ConnectionError:
                self.closed = self.broken = True

    def read(self) -> Iterator[Command]:
        """Yield the commands that have arrived; waits if there is nothing to read."""
        try:
            data = os.read(self.commands, 1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            try:
                to, command = decode(line)
            except (ValueError, RecursionError) as error:
                print(f"a command that cannot be read: {error}", file=sys.stderr, flush=True)
                continue
            if to in ("", self._node):
                yield command
