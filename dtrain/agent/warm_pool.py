"""Agents of this machine that stay after a run, for a while, with everything imported, so that the next run need not import it again.

Each idle agent listens on a Unix socket in a folder of this user alone. The socket's name begins with a key of everything that
must be the same: interpreter, environment, agent options and preloaded modules. The connection then takes the place of
the agent's stdin and stdout.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dtrain.common import environment as variables
from dtrain.common.files import private_folder
from dtrain.common.serde import JsonObject

OPTION = "--warm"
SUFFIX = ".sock"
ANSWER_SECONDS = 2.0
START_SECONDS = 30.0
UNITS = {"s": 1, "m": 60, "h": 3600}
MOST_SECONDS = 30 * 86400
READY = b"ready\n"
CREDENTIALS = struct.Struct("3i")
"""Process, user and group of a peer; see unix(7), SO_PEERCRED."""
OF_A_TERMINAL = frozenset(
    {
        "PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLORTERM", "COLUMNS", "LINES", "WINDOWID", "TMUX", "TMUX_PANE", "STY", "SSH_TTY",
        "SSH_CONNECTION", "SSH_CLIENT", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "XDG_SESSION_ID", "VTE_VERSION",
    }
)  # fmt: skip
"""Variables that differ between two terminals and that no framework looks at when it is imported."""


def seconds_of(text: str) -> float | None:
    """Of a duration as a person writes it: `30s`, `10m`, `2h`; None if that is none."""
    try:
        seconds = float(text[:-1]) * UNITS[text[-1]]
    except (ValueError, LookupError):
        return None
    return seconds if 0 < seconds < MOST_SECONDS else None


def folder() -> Path:
    """Of the sockets; raises `PermissionError` for one that somebody else prepared."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return private_folder(private_folder(Path(base) / f"dtrain-{os.getuid()}") / "warm")


def key(command: Sequence[str], environment: Mapping[str, str], run_variables: Mapping[str, str]) -> str:
    """What an agent that was started by this command, for a recipe with these variables, can be used for again.

    The command is `… agent RUN --node=NAME OPTIONS`: the run and the node may differ."""
    place = command.index("agent")
    told = {
        name: value
        for name, value in environment.items()
        if name not in OF_A_TERMINAL and not name.startswith("DTRAIN_")
    }
    facts = [
        sys.version, __file__, Path(__file__).stat().st_mtime_ns, command[:place], command[place + 3 :], sorted(told.items()),
        sorted(run_variables.items()), environment.get(variables.CPUS), sorted(os.sched_getaffinity(0)),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


class WarmAgent:
    """The launcher's end of a connection to a warm agent, in the place of a child process."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        self._connection = connection
        self.pid = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))[0]
        self._process = os.pidfd_open(self.pid)
        self.stdin = _Commands(connection)
        self.stdout = connection.makefile("rb")

    def wait(self, timeout: float | None = None) -> int:
        """0 when the agent has finished the run, minus SIGKILL when it is gone; raises `subprocess.TimeoutExpired`."""
        looked = select.poll()
        looked.register(self._connection, select.POLLRDHUP)
        looked.register(self._process, select.POLLIN)
        found = looked.poll(None if timeout is None else timeout * 1000)
        if not found:
            raise subprocess.TimeoutExpired("the warm agent", timeout or 0)
        gone = select.poll()
        gone.register(self._process, select.POLLIN)
        return -signal.SIGKILL if gone.poll(50) else 0


class _Commands(io.RawIOBase):
    """The half of a connection that is written to; closing it tells the other side."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._connection.sendall(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
        super().close()


def has_idle() -> bool:
    """Whether any agent waits, whatever for."""
    return next(_sockets(), None) is not None


def take(found_by: str, command: Sequence[str], environment: Mapping[str, str]) -> WarmAgent | None:
    """An idle agent with this key, told to be what `command` would have started; None if there is none."""
    for path in _sockets(f"{found_by}."):
        if connection := _ask(path, _serve_request(command, environment)):
            return WarmAgent(connection)
    return None


def start(seconds: float, found_by: str, command: Sequence[str], environment: Mapping[str, str]) -> WarmAgent:
    """A new agent that stays this long after its run; raises `OSError` if none can be started."""
    path = folder() / f"{found_by}.{os.urandom(4).hex()}{SUFFIX}"
    with _listener(path) as listener:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "dtrain", "agent", OPTION, str(path), str(seconds), str(listener.fileno())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/", env=environment,
            pass_fds=[listener.fileno()],
        )  # fmt: skip
    connection = _ask(path, _serve_request(command, environment), START_SECONDS)
    if connection is None:
        raise TimeoutError(f"it did not answer within {START_SECONDS:g} s")
    return WarmAgent(connection)


@dataclass(frozen=True)
class Resident:
    """One idle warm agent."""

    pid: int
    seconds_left: float
    preload: tuple[str, ...]
    megabytes: float
    """Of memory, with what its zygote has imported."""


def residents() -> list[Resident]:
    """The idle ones of this user."""
    found = []
    for path in _sockets():
        if connection := _ask(path, {"do": "tell"}):
            with connection, connection.makefile() as answer:
                fields = json.loads(answer.readline() or "null")
            if fields:
                found.append(Resident(**fields | {"preload": tuple(fields["preload"])}))
    return found


def end_all() -> int:
    """End the idle ones; how many there were."""
    ended = 0
    for path in _sockets():
        if connection := _ask(path, {"do": "end"}):
            with connection:
                connection.recv(1)
            ended += 1
    return ended


class Idle:
    """The agent's end: waits for the next run."""

    def __init__(self, path: Path, seconds: float, listener: socket.socket) -> None:
        self._path = path
        self._seconds = seconds
        self._listener: socket.socket | None = listener

    def wait(self, preload: Sequence[str], megabytes: float) -> tuple[socket.socket, JsonObject] | None:
        """The next connection and what it wants (`arguments` and `environment`); None when it is time to end."""
        until = time.monotonic() + self._seconds
        try:
            while (left := until - time.monotonic()) > 0:
                connection = self._accepted(left)
                if connection is None:
                    return None
                request = _request(connection)
                if request.get("do") == "serve":
                    return connection, request
                with connection:
                    if request.get("do") == "end":
                        return None
                    facts = Resident(os.getpid(), round(until - time.monotonic(), 1), tuple(preload), megabytes)
                    with suppress(OSError):
                        connection.sendall(json.dumps(vars(facts)).encode() + b"\n")
            return None
        finally:
            if self._listener:
                self._close(self._listener)

    def _accepted(self, seconds: float) -> socket.socket | None:
        """The next connection of this user's, told that it was heard. All others find that nobody listens here any more."""
        listener = self._listener = self._listener or _listener(self._path)
        listener.settimeout(seconds)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return None
        self._close(listener)
        connection.settimeout(ANSWER_SECONDS)
        with suppress(OSError):
            connection.sendall(READY)
        return connection

    def _close(self, listener: socket.socket) -> None:
        self._path.unlink(missing_ok=True)
        listener.close()
        self._listener = None


def _listener(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


def _sockets(prefix: str = "") -> Iterator[Path]:
    try:
        yield from sorted(folder().glob(f"{prefix}*{SUFFIX}"))
    except OSError:  # somebody else's folder: there are none that could be trusted
        return


def _serve_request(command: Sequence[str], environment: Mapping[str, str]) -> JsonObject:
    arguments = list(command[command.index("agent") + 1 :])
    return {"do": "serve", "arguments": arguments, "environment": dict(environment)}


def _ask(path: Path, request: JsonObject, seconds: float = ANSWER_SECONDS) -> socket.socket | None:
    """A connection to the agent that listens here, which has heard the request; None if nobody does (any more)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(seconds)
    try:
        connection.connect(str(path))
        if connection.recv(len(READY), socket.MSG_WAITALL) == READY:
            connection.sendall(json.dumps(request).encode() + b"\n")
            return connection
    except ConnectionRefusedError:  # its agent was killed
        path.unlink(missing_ok=True)
    except OSError:
        pass
    connection.close()
    return None


def _request(connection: socket.socket) -> JsonObject:
    """One line; byte by byte, since what follows it belongs to the agent. {} if it does not come."""
    line = bytearray()
    with suppress(OSError):
        while not line.endswith(b"\n") and (byte := connection.recv(1)):
            line += byte
    try:
        found: JsonObject = json.loads(line)
    except ValueError:
        return {}
    return found
