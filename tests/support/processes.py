"""What the laboratories of the tests need of processes: finding those they started, ending them, free ports."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterable, Set
from pathlib import Path

# Below the range from which the kernel gives ports to outgoing connections.
PORTS = range(20000, 32000)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until the condition holds; TimeoutError says what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s: {what}")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens at the moment."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def started_with(variable: str) -> dict[int, frozenset[str]]:
    """Every other living process that was started with this `NAME=value`: its pid and its whole environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = frozenset((folder / "environ").read_bytes().decode(errors="replace").split("\0"))
            if variable in variables and int(folder.name) != os.getpid():
                found[int(folder.name)] = variables
    return found


IPV6_LOOPBACK = "0" * 24 + "01000000"


def listening(pids: Iterable[int]) -> set[str]:
    """The addresses at which some processes listen on TCP, as /proc/net/tcp and tcp6 write them but without the port."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(str(link.readlink()).removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


def open_to_others(pids: Iterable[int]) -> dict[str, set[str]]:
    """The names of those of some processes that listen on TCP elsewhere than on the loopback, with the addresses as `listening` has them."""
    found = dict[str, set[str]]()
    for pid in pids:
        outside = {address for address in listening([pid]) if not address.endswith("7F") and address != IPV6_LOOPBACK}
        if outside:
            with contextlib.suppress(OSError):
                found.setdefault(Path(f"/proc/{pid}/comm").read_text().strip(), set()).update(outside)
    return found


def command_line(pid: int) -> str:
    """What `ps` shows of a process; empty where there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def status(pid: int) -> list[str]:
    """State, parent, group, session and so on, as in /proc/PID/stat; empty where there is no such process."""
    with contextlib.suppress(OSError):
        # The name before the bracket may hold blanks and brackets itself.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    return status(pid)[:1] not in ([], ["Z"], ["X"])


def in_session(leader: int) -> set[int]:
    """The living processes of a session, by its leader's pid; the leader itself too."""
    return {pid for pid in all_pids() if status(pid)[3:4] == [str(leader)] and is_alive(pid)}


def in_groups(leaders: Set[int]) -> set[int]:
    """The living processes of some process groups, by their leaders' pids."""
    wanted = {str(pid) for pid in leaders}
    return {pid for pid in all_pids() if wanted.intersection(status(pid)[2:3]) and is_alive(pid)}


def all_pids() -> list[int]:
    """The pids of this machine."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_until_gone(find: Callable[[], set[int]], seconds: float = 10) -> None:
    """Kill what `find` gives until it gives nothing, since what is being killed may start something meanwhile."""

    def gone() -> bool:
        pids = find()
        send_signal(pids, signal.SIGKILL)
        return not pids

    wait_until(gone, seconds, "processes are still there")
