"""The agent's end of a worker's control channel: never waits, whatever the worker does or however it ends."""

from __future__ import annotations

import json
import socket

from dtrain.api.protocol import TAG, report_of
from dtrain.api.reports import Report
from dtrain.common.framing import Frames, framed
from dtrain.common.message import Message, tagged
from dtrain.common.serde import JsonObject

READ_BYTES = 1 << 16


class WorkerPipe:
    """Sends messages to a worker and receives its reports over a non-blocking stream socket."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)  # noqa: FBT003
        self._socket = end
        self._frames = Frames()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 once it is closed."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        """Whether the channel is closed."""
        return self._socket.fileno() < 0

    def send(self, message: Message) -> None:
        """Queue a message, and send as much as the worker's socket takes; `flush` sends the rest."""
        self._unsent += framed(json.dumps(tagged(message, TAG)).encode())
        self.flush()

    def flush(self) -> bool:
        """Send what is queued; False if some of it still waits for a worker that does not read."""
        while self._unsent and not self.closed:
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except BlockingIOError:
                return False
            except OSError:  # the worker has ended; its exit is reported by the zygote
                break
        self._unsent.clear()
        return True

    def reports(self) -> list[tuple[JsonObject, Report]]:
        """Every report that has arrived, as it was sent and decoded. Raises `ValueError` for anything else, after which the
        channel is closed. A report that was cut short by the worker's end is left out."""
        found: list[tuple[JsonObject, Report]] = []
        while not self.closed:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.close()
                break
            try:
                for frame in self._frames.add(data):
                    body = json.loads(frame)
                    found.append((body, report_of(body)))
            except (ValueError, RecursionError) as error:
                self.close()
                raise BadReport(found, error) from error
        return found

    def close(self) -> None:
        """Idempotent. Neither send nor receive any more."""
        self._socket.close()


class BadReport(ValueError):
    """A worker sent something that is no report."""

    def __init__(self, before: list[tuple[JsonObject, Report]], error: Exception) -> None:
        super().__init__(f"its control channel carried something that is no report: {error}")
        self.before = before
        """The reports that arrived before it."""
