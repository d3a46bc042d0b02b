"""The agent's side of its template and zygote: start them, have workers forked, hear how these and the zygote end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from dtrain.agent.warm import pool
from dtrain.agent.zygote import MESSAGE_BYTES
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import STACKS_SIGNAL, ProcessHandle, signal_process

ANSWER_SECONDS = 5.0
"""A template that has imported everything and answers no request for so long is stopped or stuck, and is killed."""


@dataclass(frozen=True)
class Ended:
    """A worker has ended."""

    pid: int
    code: int
    """Exit code, or minus the signal."""


@dataclass(frozen=True)
class Broken:
    """The zygote can fork no worker (any more): a module raised an error, or the process is gone."""

    reason: str
    module: str = ""
    """The module that cannot be imported before the fork; '' if the process was killed or crashed."""
    traceback: str = ""
    """The traceback of the error that the module raised, if it did."""


class ForkRefused(Exception):
    """No worker could be forked; says why."""


class Template:
    """The process that has imported what workers need, and from which zygotes are forked; its messages are `ForkServer`'s to read.

    It is a child of the agent, or lent by a resident, which imports for it."""

    def __init__(
        self, modules: Sequence[str], environment: Mapping[str, str], warmth: pool.Warmth | None = None
    ) -> None:
        lent = warmth.template(modules, environment) if warmth else None
        self.lent = lent is not None
        self._child: subprocess.Popen[bytes] | None = None
        self._process: ProcessHandle | None = None
        if lent:
            self.channel, self.pid = lent.channel, lent.resident
            return
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = pool.command(theirs.fileno(), modules, agent=os.getpid())
            self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=dict(environment), cwd="/")
        self.begun(self._child.pid)

    def begun(self, pid: int) -> None:
        """It has this process id: until a resident has forked it, only that one has."""
        self.pid, self._process = pid, ProcessHandle(pid)

    def zygote(self) -> tuple[int, socket.socket] | None:
        """A new zygote and the socket to speak to it; None if the template is gone. It must have imported everything."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, suppress(OSError):  # what became of it is read next
            socket.send_fds(self.channel, [b"zygote"], [theirs.fileno()])
        while answer := self._answer():
            if answer["kind"] == "forked":
                return int(answer["pid"]), ours
            if answer["kind"] == "refused":
                break
        ours.close()
        return None

    def _answer(self) -> dict[str, str]:
        """The next message; nothing if the template is gone, which one that says nothing is from now on."""
        if not select.select([self.channel], [], [], ANSWER_SECONDS)[0]:
            self.kill()
        return received(self.channel)

    def code_of(self, pid: int) -> int | None:
        """How a zygote has ended: its exit code, or minus the signal; None if the template has ended, too."""
        while answer := self._answer():
            if answer["kind"] == "ended" and int(answer["pid"]) == pid:
                return int(answer["code"])
        return None

    def kill(self) -> None:
        """Kill the template and the zygote at once; one that is not forked yet ends by itself when `wait` closes the channel."""
        if self._process:
            self._process.send(signal.SIGKILL)

    def wait(self) -> int | None:
        """For its end, of which it was told or will be when the channel is closed; its exit code, or minus the signal, if it was a child."""
        self.channel.close()
        if self._process and not self._process.wait(ANSWER_SECONDS):
            self.kill()
            self._process.wait()
        return self._child.wait() if self._child else None


def received(channel: socket.socket) -> dict[str, str]:
    """The next message of a template or a zygote; nothing if it is gone."""
    try:
        text = channel.recv(MESSAGE_BYTES)
    except OSError:
        text = b""
    found: dict[str, str] = json.loads(text) if text else {}
    return found


class ForkServer:
    """One zygote, forked after the imports of its template. `wait` on it, then `hear` it."""

    def __init__(
        self,
        modules: Sequence[str],
        environment: Mapping[str, str],
        warmth: pool.Warmth | None = None,
        template: Template | None = None,
    ) -> None:
        self.modules = tuple(modules)
        self.environment = dict(environment)
        self._warmth = warmth
        self.warm = False
        """Whether everything is imported, and the zygote is there."""
        self.broken: Broken | None = None
        self._importing = ""
        self._heard: deque[Ended | Broken] = deque()
        self._take(template or Template(modules, environment, warmth))
        if template:
            self._begin()

    def _take(self, template: Template) -> None:
        self._template = template
        self.pid = template.pid
        """The zygote's process id, as soon as there is one; until then the template's."""
        self._channel = template.channel

    def fileno(self) -> int:
        """Ready to read when there is something to hear."""
        return self._channel.fileno()

    def _begin(self) -> None:
        """Everything is imported: have the zygote forked."""
        made = self._template.zygote()
        if made is None:
            self._break(Broken(self._obituary(self._template.wait())))
            return
        self.pid, self._channel = made
        self.warm = True

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
        """Return what happened since the last call."""
        while self.broken is None and select.select([self._channel], [], [], 0)[0]:
            self._receive()
        while self._heard:
            yield self._heard.popleft()

    def show_stacks(self) -> None:
        """Have it write its stacks to the agent's log; an import may never end."""
        signal_process(self.pid, STACKS_SIGNAL)

    def stop(self) -> None:
        """End both and the workers, and wait for the template, which has waited for the zygote."""
        self._channel.close()
        if not self.warm:
            self._template.kill()
        self._template.wait()

    def again(self, environment: Mapping[str, str] | None = None) -> ForkServer:
        """Another one that has imported the same, in the place of this: of the same template if that is still there."""
        kept = self.environment if environment is None else environment
        if self.warm and self.broken and kept == self.environment:
            following = ForkServer(self.modules, kept, self._warmth, self._template)
            if following.broken is None:
                return following
        self.stop()
        # A resident whose imports did not end would be asked in vain again.
        return ForkServer(self.modules, kept, self._warmth if self.warm else None)

    def _send(self, descriptors: Sequence[int]) -> None:
        with suppress(OSError):  # what became of it is read next
            socket.send_fds(self._channel, [b"fork"], list(descriptors))

    def _receive(self) -> dict[str, str]:
        """Read one message and apply it."""
        message = received(self._channel) or {"kind": "gone"}
        kind = message["kind"]
        if kind == "importing":
            self._importing = message["module"]
        elif kind == "warm":
            if self._template.lent:
                self._template.begun(int(message["pid"]))
            self._begin()
        elif kind == "ended":
            self._heard.append(Ended(int(message["pid"]), int(message["code"])))
        elif kind == "broken":
            reason = f"importing {message['module']} before the workers were forked: {message['error']}"
            self._break(Broken(reason, message["module"], message["traceback"]))
        elif self._template.lent and not self.warm and not self._importing:
            # The resident has ended meanwhile, or a file that it had imported was changed.
            self._template.wait()
            self._take(Template(self.modules, self.environment, self._warmth))
        elif kind == "gone":
            self._break(
                Broken(self._obituary(self._template.code_of(self.pid) if self.warm else self._template.wait()))
            )
        return message

    def _break(self, broken: Broken) -> None:
        self.broken = broken
        self._heard.append(broken)
        self._channel.close()

    def _obituary(self, code: int | None) -> str:
        how = "has ended" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        when = "" if self.warm else f" while it imported {self._importing or 'dtrain'}"
        return f"the process that workers are forked from (process {self.pid}) {how}{when}"
