"""The part of Ray that runs on a node: an actor that holds the agent on pipes. Importing this imports no Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dtrain.common import environment as variables


class AgentHost:
    """The actor: lines go down with `send` and come up from the streaming `events`.

    The agent ends, and its workers with it, when this process does: its stdin closes."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        import ray

        # Ray sets one thread for every task: how many a worker may use is dtrain's business.
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        inherited[variables.ADDRESS] = ray.util.get_node_ip_address()
        if ray.get_runtime_context().runtime_env.get("working_dir"):
            inherited[variables.FOLDER] = str(Path.cwd())
        self._sending = threading.Lock()
        # Where a runtime environment brings packages, they are of this Python.
        self._process = subprocess.Popen(
            [sys.executable, *command[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=inherited | environment,
            start_new_session=True, cwd="/",
        )  # fmt: skip

    def events(self) -> Iterator[bytes]:
        """Every line the agent says, until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:  # noqa: UP028  Ray sends into its generators, which a file does not take
            yield line
        self._process.wait()

    def send(self, line: bytes) -> None:
        """Write one line to the agent."""
        assert self._process.stdin is not None
        with self._sending, suppress(OSError, ValueError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def node(self) -> str:
        """The id Ray knows this node by; the agent's address is the one Ray knows, too."""
        import ray

        return str(ray.get_runtime_context().get_node_id())
