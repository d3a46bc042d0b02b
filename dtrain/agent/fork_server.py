"""The agent's side of its zygote: start it, have it fork workers, hear how they and it end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dtrain.agent.zygote import MESSAGE_BYTES
from dtrain.common.processes import STACKS_SIGNAL

PROGRAM = "import sys; sys.path[:1] == [''] and sys.path.pop(0); from dtrain.agent.zygote import main; main()"
"""Without `-P`, which workers would inherit and plain programs do not have."""


@dataclass(frozen=True)
class Ended:
    """A worker has ended."""

    pid: int
    code: int
    """Its exit code, or minus the signal."""


@dataclass(frozen=True)
class Broken:
    """The zygote can fork no worker (any more): a module raised an error, or the process is gone."""

    reason: str
    module: str = ""
    """Which cannot be imported before the fork; '' if the process was killed or crashed."""
    traceback: str = ""
    """Of the error that the module raised, if it did."""


class ForkRefused(Exception):
    """No worker could be forked; says why."""


class ForkServer:
    """One zygote. `wait` on it, then `hear` it."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.modules = tuple(modules)
        self.environment = dict(environment)
        self.warm = False
        """Whether everything is imported."""
        self.broken: Broken | None = None
        self._importing = ""
        self._heard: deque[Ended | Broken] = deque()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), str(os.getpid()), "dtrain.worker.main", *modules],
                pass_fds=[theirs.fileno()], env=self.environment, cwd="/",
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the zygote."""
        return self._process.pid

    def fileno(self) -> int:
        """Ready to read when there is something to hear."""
        return self._channel.fileno()

    def fork(self, descriptors: Sequence[int]) -> int:
        """The process id of a new worker that has these descriptors; raises `ForkRefused`."""
        self._send(descriptors)
        while self.broken is None:
            answer = self._receive()
            if answer.get("kind") == "forked":
                return int(answer["pid"])
            if answer.get("kind") == "refused":
                raise ForkRefused(f"no process could be started for it: {answer['error']}")
        raise ForkRefused(self.broken.reason)

    def hear(self) -> Iterator[Ended | Broken]:
        """What happened since the last call."""
        while self.broken is None and select.select([self._channel], [], [], 0)[0]:
            self._receive()
        while self._heard:
            yield self._heard.popleft()

    def show_stacks(self) -> None:
        """Have it write its stacks to the agent's log; an import may never end."""
        with suppress(ProcessLookupError):
            self._process.send_signal(STACKS_SIGNAL)

    def stale(self) -> bool:
        """Whether a file that it has imported was changed since, or the zygote is gone."""
        with suppress(OSError):
            self._channel.send(b"check")
        while self.broken is None:
            answer = self._receive()
            if answer.get("kind") == "checked":
                return bool(answer["changed"])
        return True

    def stop(self) -> None:
        """End it and its workers, and wait for it."""
        self._channel.close()
        if not self.warm:
            self._process.kill()
        self._process.wait()

    def again(self, environment: Mapping[str, str] | None = None) -> ForkServer:
        """Another one that imports the same, in the place of this."""
        if self.broken is None:
            self.stop()
        return ForkServer(self.modules, self.environment if environment is None else environment)

    def _send(self, descriptors: Sequence[int]) -> None:
        with suppress(OSError):  # what became of it is read next
            socket.send_fds(self._channel, [b"fork"], list(descriptors))

    def _receive(self) -> dict[str, str]:
        """One message, taken to heart."""
        try:
            text = self._channel.recv(MESSAGE_BYTES)
        except OSError:
            text = b""
        message: dict[str, str] = json.loads(text) if text else {"kind": "gone"}
        kind = message["kind"]
        if kind == "importing":
            self._importing = message["module"]
        elif kind == "warm":
            self.warm = True
        elif kind == "ended":
            self._heard.append(Ended(int(message["pid"]), int(message["code"])))
        elif kind == "broken":
            reason = f"importing {message['module']} before the workers were forked: {message['error']}"
            self._break(Broken(reason, message["module"], message["traceback"]))
        elif kind == "gone":
            self._break(Broken(self._obituary()))
        return message

    def _break(self, broken: Broken) -> None:
        self.broken = broken
        self._heard.append(broken)
        self._channel.close()
        self._process.wait()

    def _obituary(self) -> str:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        when = "" if self.warm else f" while it imported {self._importing or 'dtrain'}"
        return f"the process that workers are forked from (process {self.pid}) {how}{when}"
