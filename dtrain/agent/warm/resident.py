"""A process that has imported what workers need, stays for a while, and forks a template for every agent that asks for one.

It listens on a Unix socket in a folder of this user alone. An agent sends one line, and with it the file descriptors of the template's
end of their channel and of the agent's log; see `dtrain.agent.warm.pool`, which is the other end. Agents that ask during the import wait for its end.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 2.0
"""One end waits for the other for so long at most."""
LOOK_SECONDS = 0.5
"""How often a resident looks whether the templates that it forked have ended."""
MOST_DESCRIPTORS = 2


class Resident:
    """Lends what this process has imported."""

    def __init__(self, path: Path, seconds: float, modules: Sequence[str]) -> None:
        """Listen from now on; raises `OSError` if it cannot."""
        self._path = path
        self._seconds = seconds
        self._modules = tuple(modules)
        self._until = 0.0
        self._lent: set[int] = set()
        """The process ids of the templates that have not ended."""
        self._runs = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()

    def lend(self, first: socket.socket | None, changed: Callable[[], str]) -> socket.socket:
        """Return in every template that is forked, with its channel: at once for the agent that started this process. The resident itself ends in
        here, when no template has been there for its time, or when a file that it imported is not what it was."""
        if first and self._fork():
            return first
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.close(null)
        if first:
            first.close()
        self._until = time.monotonic() + self._seconds
        while connection := self._next():
            with connection:
                request, descriptors = _received(connection)
                do = request.get("do")
                if do == "end" or (do == "lend" and changed()):
                    break
                if do == "lend" and len(descriptors) == MOST_DESCRIPTORS and self._fork():
                    return _become(request, descriptors)
                if do == "list":
                    with suppress(OSError):
                        connection.sendall(json.dumps(self._facts()).encode() + b"\n")
            for one in descriptors:
                os.close(one)
        self._path.unlink(missing_ok=True)
        os._exit(0)

    def _fork(self) -> bool:
        """Whether this is the new process."""
        pid = os.fork()
        if pid == 0:
            self._listener.close()
            os.setsid()
            return True
        self._lent.add(pid)
        self._runs += 1
        return False

    def _next(self) -> socket.socket | None:
        """The next connection; None when it is time to end."""
        while True:
            self._lent.difference_update(_ended())
            now = time.monotonic()
            if self._lent:
                self._until = now + self._seconds
            left = self._until - now
            if left <= 0:
                self._path.unlink(missing_ok=True)  # who found it before may have connected: one more look
            if select.select([self._listener], [], [], max(0.0, min(left, LOOK_SECONDS)))[0]:
                connection, _ = self._listener.accept()
                connection.settimeout(ANSWER_SECONDS)
                return connection
            if left <= 0:
                return None

    def _facts(self) -> dict[str, Any]:
        from dtrain.common.processes import resident_megabytes

        left = round(self._until - time.monotonic(), 1)
        return {
            "pid": os.getpid(), "seconds_left": left, "preload": self._modules, "megabytes": resident_megabytes(os.getpid()), "runs": self._runs,
        }  # fmt: skip


def _ended() -> set[int]:
    found = set[int]()
    with suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            found.add(pid)
    return found


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One line and the descriptors that came with it; {} if it does not come."""
    descriptors = list[int]()
    text = bytearray()
    try:
        while not text.endswith(b"\n"):
            part, came, _, _ = socket.recv_fds(connection, 1 << 16, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
            descriptors += came
            if not part:
                break
            text += part
        request: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {}, descriptors
    return request, descriptors


def _become(request: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Take over what the agent has: its log, environment and umask. The channel to it."""
    channel, log = descriptors
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.umask(request["umask"])
    return socket.socket(fileno=channel)
