"""Checks a node before its first step: those of `dtrain doctor` that take less than a second.

They run in a thread beside the start of the workers and import next to nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from dtrain.agent import devices, node_health
from dtrain.api.protocol import IMAGE, CheckNode, CheckPeers, NodeAnswered, PeersChecked
from dtrain.common import environment as variables
from dtrain.record.folder import RunDir

SHARED_MEMORY = "/dev/shm"
REACH_SECONDS = 3.0
"""A node that does not answer for so long cannot be reached; the kernel sends the first message again after one."""
BUILDS = "(_cpu|_gpu|_rocm|_intel)?"
"""Endings of the names of packages that hold the same module."""


class Preflight:
    """Answers `CheckNode` and `CheckPeers` in a thread."""

    def __init__(self, run: RunDir, node: str, send: Callable[[NodeAnswered | PeersChecked], None]) -> None:
        self._run = run
        self._node = node
        self._send = send
        self._port: socket.socket | None = None
        """The kernel answers at it; nobody reads."""

    def begin(self, command: CheckNode | CheckPeers) -> None:
        """Does not wait: the answer is sent when it is there."""
        threading.Thread(target=self._answer, args=(command,), name="preflight", daemon=True).start()

    def end(self) -> None:
        """Other nodes are not answered any more."""
        if self._port:
            self._port.close()
            self._port = None

    def _answer(self, command: CheckNode | CheckPeers) -> None:
        if isinstance(command, CheckPeers):
            self._send(PeersChecked(unreachable(command.peers)))
            return
        clock = time.time()
        problem = folder_problem(self._run.path, self._node) if command.folder else ""
        self._send(
            NodeAnswered(
                clock, versions(command.packages), self._listen(),
                disk_free=free(self._run.path), shared_memory_free=free(Path(SHARED_MEMORY)), problem=problem,
                troubles=tuple(f"{one.text}: {one.todo}" for one in node_health.troubles(on_gpus=command.gpus)),
            )
        )  # fmt: skip

    def _listen(self) -> int:
        """A port that the other nodes may try; 0 if there can be none."""
        self.end()
        try:
            self._port = socket.create_server((devices.address(), 0), backlog=1024)
        except OSError:
            return 0
        return int(self._port.getsockname()[1])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of those of the packages that are installed; by the names of their folders, which takes a millisecond."""
    names = [name for folder in map(Path, sys.path) if folder.is_dir() for name in _names(folder)]
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    if image := os.environ.get(variables.IMAGE):
        found[IMAGE] = image
    for package in packages:
        pattern = re.compile(rf"{re.escape(package)}{BUILDS}-([^-]+)\.dist-info", re.IGNORECASE)
        match = next(filter(None, map(pattern.fullmatch, names)), None)
        if match:
            found[package] = match[2]
    return found


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def free(path: Path) -> int | None:
    """Bytes; None if that cannot be told."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def folder_problem(folder: Path, node: str) -> str:
    """Why nothing can be written to the run folder from here; '' if something can."""
    path = folder / f".check-{node}-{os.getpid()}"
    try:
        path.write_text("x")
        path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def unreachable(peers: dict[str, tuple[str, int]]) -> dict[str, str]:
    """Return the nodes among these (name → address and port) that cannot be reached, with the reason."""
    found: dict[str, str] = {}

    def reach(node: str, address: str, port: int) -> None:
        try:
            socket.create_connection((address, port), timeout=REACH_SECONDS).close()
        except OSError as error:
            found[node] = f"{address}: {error.strerror or error}"

    threads = [threading.Thread(target=reach, args=(node, *place)) for node, place in peers.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
