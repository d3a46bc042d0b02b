"""The ready transport for clusters: agents at the end of a child process's stdin and stdout."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from dtrain.api.cluster import Inbox, NodeLost
from dtrain.api.protocol import Command, Quit, decode, encode
from dtrain.common.message import OtherVersion

QUIT_SECONDS = 10.0


class PipedAgents:
    """A child process whose stdin reaches the agents of some nodes and whose stdout brings what they say."""

    def __init__(
        self,
        nodes: Sequence[str],
        command: Sequence[str],
        environment: Mapping[str, str],
        inbox: Inbox,
        *,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Start `command` (`ssh host …`, `kubectl exec -i …`); `process` is one that was started before."""
        # A session of its own keeps a Ctrl-C in the terminal from it: the supervisor decides what that means.
        self._process = process or subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True, cwd="/"
        )
        self._nodes = nodes
        self._inbox = inbox
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"agents-{nodes[0]}", daemon=True)
        self._reader.start()

    def send(self, command: Command, to: str = "") -> None:
        """Send to the agent of one node, or to all; see `Channel.send`."""
        assert self._process.stdin is not None
        with self._sending, suppress(OSError, ValueError):
            self._process.stdin.write(encode(command, to))
            self._process.stdin.flush()

    def end(self) -> None:
        """Ask the agents to quit, which ends their workers; make sure that they do."""
        self.send(Quit())
        self._close()
        try:
            self._process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(QUIT_SECONDS)

    def kill(self) -> None:
        """End a child that does not answer; a zygote ends its workers when it sees that its agent is gone."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        with self._sending, suppress(OSError):
            self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        problem = ""
        with self._process.stdout as lines:
            for line in lines:
                try:
                    node, event = decode(line)
                except OtherVersion as error:
                    problem = f"its agent is of another version of dtrain: {error}"
                    break
                except (ValueError, RecursionError):  # what a login shell or ssh printed
                    continue
                self._inbox.put((node, event))
        if problem:
            self.kill()
        code = self._process.wait()
        reason = problem or f"its agent ended with {f'signal {-code}' if code < 0 else f'code {code}'}"
        for node in self._nodes:
            self._inbox.put((node, NodeLost(reason)))
