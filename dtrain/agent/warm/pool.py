"""Finds, starts, lists and ends this user's residents: the processes that keep what they have imported for later runs.

The name of a resident's socket begins with a key of everything that must be the same: interpreter, environment, modules, processors, limits,
and the control group that bounds the memory. An agent whose template comes from a resident imports nothing; `dtrain.agent.warm.resident` is
the other end.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from dtrain.agent.warm.resident import ANSWER_SECONDS
from dtrain.common import durations, memory
from dtrain.common import environment as variables
from dtrain.common.files import private_folder, users_folder
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import TEMPLATE, usage

HOLD = "--hold"
"""First option of an agent that becomes a resident instead. For clusters that end with a run everything that the run started (steps of
SLURM): there, residents live in a step of their own."""
FOLDER = "warm"
SUFFIX = ".sock"
LOOK_SECONDS = 0.05
MOST_PATH_BYTES = 107
"""Longest path of a Unix socket; see unix(7)."""
WORKER = "dtrain.worker.main"
ORPHAN = '"$@" >&2 & echo $!'
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
OF_A_LAUNCHER = ("DTRAIN_", "PYTEST_", "RAY_", "SLURM", "SRUN_")
"""How the variables begin that tell a process its place, and that every run, or every test, sets anew."""
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


def folder() -> Path:
    """Return the folder of the sockets; raises `PermissionError` for one that another user prepared."""
    return private_folder(users_folder(_base()) / FOLDER)


def in_use() -> bool:
    """Whether this user has ever kept anything warm on this machine."""
    return (Path(_base()) / f"dtrain-{os.getuid()}" / FOLDER).is_dir()


def _base() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp"


def key(modules: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return a key of what must be equal for a process of this one's limits and processors to use what another has imported."""
    seen = {
        name: value
        for name, value in environment.items()
        if name not in OF_A_TERMINAL and not name.startswith(OF_A_LAUNCHER)
    }
    # Steps of one job of SLURM have groups of their own, and its residents a step of their own.
    place = environment.get("SLURM_JOB_ID") or memory.limiting_group()
    facts = [
        sys.version, sys.executable, __file__, Path(__file__).stat().st_mtime_ns, list(modules), sorted(seen.items()),
        place, sorted(os.sched_getaffinity(0)), [resource.getrlimit(limit) for limit in LIMITS], os.nice(0),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Lent:
    """A template that a resident forks, or will when it has imported everything."""

    channel: socket.socket
    resident: int
    """The resident's process id."""


@dataclass(frozen=True)
class Warmth:
    """How an agent uses residents."""

    keep_seconds: float = 0.0
    """How long a resident stays that it starts if it finds none; 0: it starts none."""
    look_seconds: float = 0.0
    """How long it waits for one to be there."""

    @classmethod
    def of(cls, environment: Mapping[str, str], look_seconds: float | None) -> Warmth:
        """What the environment wants (DTRAIN_WARM), unless the cluster keeps residents by itself, for which agents wait so long."""
        if look_seconds is not None:
            return cls(look_seconds=look_seconds)
        return cls(keep_seconds=durations.seconds_of(environment.get(variables.WARM, "")) or 0.0)

    def template(self, modules: Sequence[str], environment: Mapping[str, str]) -> Lent | None:
        """A template that has these modules; None if it must be a child of the agent."""
        if not (self.keep_seconds or self.look_seconds or in_use()):
            return None
        found_by = key(modules, environment)
        until = time.monotonic() + self.look_seconds
        while not (lent := _borrowed(found_by, environment)) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        if lent or not self.keep_seconds:
            return lent
        try:
            return _start(self.keep_seconds, found_by, modules, environment)
        except OSError as error:
            print(f"dtrain: nothing can stay warm: {error}", file=sys.stderr)
            return None


def problem() -> str:
    """Why nothing can stay warm on this machine, or ''."""
    try:
        folder()
    except OSError as error:
        return f"nothing can stay warm: {error}"
    return ""


def _borrowed(found_by: str, environment: Mapping[str, str]) -> Lent | None:
    for path in _sockets(f"{found_by}."):
        umask = os.umask(0o077)
        os.umask(umask)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"do": "lend", "environment": dict(environment), "umask": umask}
        with theirs:
            connection = _ask(path, request, [theirs.fileno(), 2])
        if connection:
            with connection:
                pid = CREDENTIALS.unpack(
                    connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
                )[0]
            if (found := usage(pid)) and not found.stopped:
                return Lent(ours, pid)
        ours.close()
    return None


def _start(seconds: float, found_by: str, modules: Sequence[str], environment: Mapping[str, str]) -> Lent:
    """A new resident, and its first template; raises `OSError` if none can be started."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        resident = command(theirs.fileno(), modules, path=_socket_path(found_by), seconds=seconds)
        started = subprocess.run(
            ["sh", "-c", ORPHAN, "sh", *resident], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, cwd="/",
            env=dict(environment), pass_fds=[theirs.fileno()], check=True,
        )  # fmt: skip
    return Lent(ours, int(started.stdout))


def become(seconds: float, modules: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Turn this process into a resident that nobody has asked for yet; raises `OSError` if it cannot be."""
    resident = command(-1, modules, path=_socket_path(key(modules, environment)), seconds=seconds)
    os.execve(resident[0], resident, dict(environment))


def command(
    channel: int, modules: Sequence[str], *, agent: int = 0, path: Path | None = None, seconds: float = 0.0
) -> list[str]:
    """Return how `dtrain.agent.zygote` is started: as the template of an agent or, with the path of a socket, as a resident."""
    return [sys.executable, "-c", TEMPLATE, str(channel), str(agent), str(path or ""), str(seconds), WORKER, *modules]


def _socket_path(found_by: str) -> Path:
    """Where a new resident with this key is found; raises `OSError` for a folder whose name is too long."""
    path = folder() / f"{found_by}.{os.urandom(4).hex()}{SUFFIX}"
    if len(os.fsencode(path)) > MOST_PATH_BYTES:
        raise OSError(f"the path of its socket is too long: {path}")
    return path


@dataclass(frozen=True)
class Listed:
    """One resident, as `dtrain warm` lists it."""

    pid: int
    seconds_left: float
    preload: tuple[str, ...]
    megabytes: float
    runs: int
    """How often a run's agent has taken what it imported."""


def residents() -> list[Listed]:
    """Those of this user that have imported everything."""
    found = []
    for path in _sockets():
        if connection := _ask(path, {"do": "list"}):
            with connection, connection.makefile() as answer, suppress(OSError):
                if line := answer.readline():
                    fields = json.loads(line)
                    found.append(Listed(**fields | {"preload": tuple(fields["preload"][1:])}))
    return found


def end_all() -> int:
    """End those that have imported everything; how many there were. A run that uses what one of them has imported goes on."""
    ended = 0
    for path in _sockets():
        if connection := _ask(path, {"do": "end"}):
            with connection, suppress(OSError):
                ended += connection.recv(1) == b""
    return ended


def _sockets(prefix: str = "") -> Iterator[Path]:
    if not in_use():  # who keeps nothing warm has no folder made
        return
    try:
        yield from sorted(folder().glob(f"{prefix}*{SUFFIX}"))
    except OSError:  # somebody else's folder: there are none that could be trusted
        return


def _ask(path: Path, request: dict[str, Any], descriptors: Sequence[int] = ()) -> socket.socket | None:
    """A connection to the resident that listens here, with the request sent; None if nobody listens (any more)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_SECONDS)
    line = json.dumps(request).encode() + b"\n"
    try:
        connection.connect(str(path))
        sent = socket.send_fds(connection, [line], descriptors) if descriptors else 0
        connection.sendall(line[sent:])
        return connection
    except ConnectionRefusedError:  # its process was killed
        path.unlink(missing_ok=True)
    except OSError:
        pass
    connection.close()
    return None
