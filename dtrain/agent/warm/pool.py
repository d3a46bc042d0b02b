"""Agents of a machine that stay after a run, for a while, with everything imported, so that the next run need not import it again.

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
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dtrain.common import durations
from dtrain.common import environment as variables
from dtrain.common.files import private_folder, users_folder
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject

OPTION = "--warm"
HOLD = "--hold"
"""Of an agent that waits for its first run."""
RELAY = "--relay"
"""Of one that has a warm agent do its work, if there is one."""
FOLDER = "warm"
SUFFIX = ".sock"
ANSWER_SECONDS = 2.0
MOST_PATH_BYTES = 107
"""Longest path of a Unix socket; see unix(7)."""
READY = b"ready\n"
ORPHAN = '"$@" >/dev/null & echo $!'
"""Nobody's child: Ray kills the children of an actor with it."""
CREDENTIALS = struct.Struct("3i")
"""Process, user and group of a peer; see unix(7), SO_PEERCRED."""
OF_A_TERMINAL = frozenset(
    {
        "PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLORTERM", "COLUMNS", "LINES", "WINDOWID", "TMUX", "TMUX_PANE", "STY", "SSH_TTY",
        "SSH_CONNECTION", "SSH_CLIENT", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "XDG_SESSION_ID", "VTE_VERSION",
    }
)  # fmt: skip
"""Variables that differ between two terminals and that no framework looks at when it is imported."""
OF_A_LAUNCHER = ("DTRAIN_", "RAY_", "SLURM", "SRUN_")
"""How the variables begin that tell a process its place, and that every run sets anew."""

OF_A_SUPERVISOR = "--supervisor="
"""How the option begins that tells an agent whom it works for."""


def folder() -> Path:
    """Return the folder of the sockets; raises `PermissionError` for one that another user prepared."""
    return private_folder(users_folder(_base()) / FOLDER)


def in_use() -> bool:
    """Whether this user has ever kept an agent warm on this machine."""
    return (Path(_base()) / f"dtrain-{os.getuid()}" / FOLDER).is_dir()


def _base() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp"


def key(command: Sequence[str], environment: Mapping[str, str], run_variables: Mapping[str, str]) -> str:
    """Return a key under which an agent can be reused: equal commands and equal variables of the recipe. The command is
    `… agent RUN --node=NAME OPTIONS`; run and node may differ.

    The command is `… agent RUN --node=NAME OPTIONS`: the run, the node and the supervisor may differ."""
    place = command.index("agent")
    told = {
        name: value
        for name, value in environment.items()
        if name not in OF_A_TERMINAL and not name.startswith(OF_A_LAUNCHER)
    }
    options = [option for option in command[place + 3 :] if not option.startswith(OF_A_SUPERVISOR)]
    facts = [
        sys.version, __file__, Path(__file__).stat().st_mtime_ns, command[:place], options, sorted(told.items()),
        sorted(run_variables.items()), environment.get(variables.CPUS), sorted(os.sched_getaffinity(0)),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


class WarmAgent:
    """The launcher's end of a connection to a warm agent, in the place of a child process."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        connection.settimeout(None)
        self._connection = connection
        self.pid = pid
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


def socket_path(found_by: str) -> Path:
    """Where a new agent with this key is found; raises `OSError` for a folder whose name is too long."""
    path = folder() / f"{found_by}.{os.urandom(4).hex()}{SUFFIX}"
    if len(os.fsencode(path)) > MOST_PATH_BYTES:
        raise OSError(f"the path of its socket is too long: {path}")
    return path


def has_idle() -> bool:
    """Whether any agent waits, whatever for."""
    return next(_sockets(), None) is not None


def found_or_started(
    command: Sequence[str], environment: Mapping[str, str], run_variables: Mapping[str, str]
) -> WarmAgent | None:
    """An agent that stayed after an earlier run, or one that will stay after this one if the environment's DTRAIN_WARM wants
    it; None otherwise. See `key` for the arguments."""
    found_by = key(command, environment, run_variables)
    if found := take(found_by, command, environment):
        return found
    seconds = durations.seconds_of(environment.get(variables.WARM, ""))
    try:
        return start(seconds, found_by, command, environment) if seconds else None
    except OSError as error:
        print(f"dtrain: no agent can stay warm: {error}", file=sys.stderr)
        return None


def take(found_by: str, command: Sequence[str], environment: Mapping[str, str]) -> WarmAgent | None:
    """An idle agent with this key, told to be what `command` would have started; None if there is none."""
    for path in _sockets(f"{found_by}."):
        if connection := _ask(path, _serve_request(command, environment)):
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
            return WarmAgent(connection, CREDENTIALS.unpack(peer)[0])
    return None


def start(seconds: float, found_by: str, command: Sequence[str], environment: Mapping[str, str]) -> WarmAgent:
    """A new agent that stays this long after its run, and that nobody finds before; raises `OSError` if none can be started."""
    path = socket_path(found_by)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        agent = [sys.executable, "-P", "-m", "dtrain", "agent", OPTION, str(path), str(seconds), str(theirs.fileno())]
        started = subprocess.run(
            ["sh", "-c", ORPHAN, "sh", *agent], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
            cwd="/", env=environment, pass_fds=[theirs.fileno()], check=True,
        )  # fmt: skip
    ours.sendall(_line(_serve_request(command, environment)))
    return WarmAgent(ours, int(started.stdout))


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

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._listener: socket.socket | None = None

    def listen(self) -> None:
        """Idempotent. Be found from now on."""
        self._listener = self._listener or _listener(self._path)

    def wait(self, preload: Sequence[str], megabytes: float) -> tuple[socket.socket, JsonObject] | None:
        """The next connection and what it wants (`arguments` and `environment`); None when it is time to end."""
        until = time.monotonic() + self._seconds
        try:
            while (left := until - time.monotonic()) > 0:
                connection = self._accepted(left)
                if connection is None:
                    return None
                request = request_on(connection)
                if request.get("do") == "serve":
                    return connection, request
                with connection:
                    if request.get("do") == "end":
                        return None
                    facts = Resident(os.getpid(), round(until - time.monotonic(), 1), tuple(preload), megabytes)
                    with suppress(OSError):
                        connection.sendall(_line(vars(facts)))
            return None
        finally:
            if self._listener:
                self._close(self._listener)

    def _accepted(self, seconds: float) -> socket.socket | None:
        """The next connection of this user's, told that it was heard. All others find that nobody listens here any more."""
        self.listen()
        listener = self._listener
        assert listener is not None
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
    if not in_use():  # who keeps no agent warm has no folder made
        return
    try:
        yield from sorted(folder().glob(f"{prefix}*{SUFFIX}"))
    except OSError:  # somebody else's folder: there are none that could be trusted
        return


def _serve_request(command: Sequence[str], environment: Mapping[str, str]) -> JsonObject:
    arguments = list(command[command.index("agent") + 1 :])
    return {"do": "serve", "arguments": arguments, "environment": dict(environment)}


def _ask(path: Path, request: JsonObject) -> socket.socket | None:
    """A connection to the agent that listens here, which has heard the request; None if nobody does (any more)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.connect(str(path))
        if connection.recv(len(READY), socket.MSG_WAITALL) == READY:
            connection.sendall(_line(request))
            return connection
    except ConnectionRefusedError:  # its agent was killed
        path.unlink(missing_ok=True)
    except OSError:
        pass
    connection.close()
    return None


def _line(message: JsonObject) -> bytes:
    return json.dumps(message).encode() + b"\n"


def request_on(connection: socket.socket) -> JsonObject:
    """Read one line byte by byte, since what follows it belongs to the agent. {} if it does not come."""
    line = bytearray()
    with suppress(OSError):
        while not line.endswith(b"\n") and (byte := connection.recv(1)):
            line += byte
    try:
        found: JsonObject = json.loads(line)
    except ValueError:
        return {}
    return found
