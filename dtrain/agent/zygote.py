"""The template and the zygote of an agent: the template imports the framework once and forks the zygote, and that forks every worker.

If the zygote is killed, its workers die with it, and the template forks another one at once: nothing is imported again.
Both adopt what the workers start and leave behind, in sessions of its own, too; it is ended with the last worker. The supervisor of a
run that a worker submitted goes on.
`dtrain.agent.fork_server` starts the template, or has one forked by a process that an earlier run left (`dtrain.agent.warm`), and speaks to
template and zygote over a socket each: a request brings the file descriptor of a new zygote's socket, or those of a new worker; answers tell of
its process. They are no `multiprocessing` processes, so that workers
find that module untouched. Both end when their agent does, since they then read the end of the socket. On its way out each of them
kills everything below it: the workers would die with the zygote anyway (`PR_SET_PDEATHSIG`), but their own children (data loaders) would
not.
"""

from __future__ import annotations

import atexit
import ctypes  # noqa: F401  what every worker needs at once
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtrain.common.processes import (
    GPU_DEVICES,
    STACKS_SIGNAL,
    adopt_orphans,
    alive,
    children,
    die_with_parent,
    kill_group,
    opened,
    outlive_parent,
    outlives_attempts,
    set_name,
)

MESSAGE_BYTES = 1 << 16
MOST_DESCRIPTORS = 2
IMPORT_SECONDS = 3600
"""A resident, which nobody waits for, is killed if its imports take longer."""
END_SECONDS = 5.0
"""For processes that were killed to be gone; one that waits for a device may take longer."""
_exit_code: tuple[int, int] | None = None
"""A worker's process id and what it ends with: an exit code, or minus a signal."""


Facts = tuple[int, int, int, int]
"""Inode, size, and the times of the last change of a file and of its inode."""
Files = dict[str, Facts]


def main() -> None:
    """`python -c … CHANNEL AGENT SOCKET SECONDS MODULE…`: be a template, then a zygote; in a worker, return when the user's code has ended.

    With the path of a SOCKET, be a resident first, which forks templates until none was there for SECONDS; CHANNEL is -1 if no agent waits for
    the first."""
    # What is registered first is called last: after the exit handlers of everything that is imported from here on.
    atexit.register(_leave)
    descriptor, agent, path, seconds, *modules = sys.argv[1:]
    channel = socket.socket(fileno=int(descriptor)) if int(descriptor) >= 0 else None
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # An import may never end. When all have, this process is to outlive its agent, since it has its workers to end.
    resident = None
    if path:
        from dtrain.agent.warm.resident import Resident

        set_name("dtrain-warm")
        signal.alarm(IMPORT_SECONDS)
        resident = Resident(Path(path), float(seconds), modules)
    else:
        set_name("dtrain-template")
        die_with_parent(int(agent))
    before = dict(os.environ)
    # Importing a framework makes objects that stay: looking for garbage among them takes a sixth of the time. Workers
    # turn it on again.
    gc.disable()
    if not _import(modules, channel):
        os._exit(1)
    from dtrain.worker import main as worker

    worker.warm_up()
    files = _imported_files()
    imported = {name: value for name, value in os.environ.items() if before.get(name) != value}
    if resident:
        signal.alarm(0)
        channel = resident.lend(channel, lambda: _changed(files))
        set_name("dtrain-template")
    else:
        outlive_parent()
    assert channel is not None
    template = os.getpid()
    _say(channel, kind="warm", pid=template)
    descriptors = _serve(channel)
    if descriptors is None:
        if os.getpid() == template:
            for zygote in children(template):
                for child in _to_end(zygote):
                    kill_group(child)
        _end_children()
        os._exit(0)
    global _exit_code
    _exit_code = os.getpid(), 1
    _exit_code = os.getpid(), worker.main(worker.Inheritance(descriptors, imported))


def _import(modules: list[str], channel: socket.socket | None) -> bool:
    """Import what is to be there before the first fork; a module that is not there is the workers' to miss."""
    for name in modules:
        _say(channel, kind="importing", module=name)
        try:
            importlib.import_module(name)
        except ImportError:
            traceback.print_exc()
        except BaseException as error:  # noqa: BLE001  a module may raise anything, SystemExit included
            traceback.print_exc()
            from dtrain.worker.failure_report import users_traceback

            _say(
                channel,
                kind="broken",
                module=name,
                error=f"{type(error).__name__}: {error}"[:2000],
                traceback=users_traceback(error, None),
            )
            return False
        if device := opened("self", GPU_DEVICES):
            why = (
                f"it starts using the GPU ({device}), and processes that are forked afterwards cannot: leave it out of "
                "preload, or have it wait until it is called"
            )
            _say(channel, kind="broken", module=name, error=why, traceback="")
            return False
    return True


def _say(channel: socket.socket | None, **message: Any) -> None:
    if channel:
        with suppress(OSError):  # the agent is gone: the next read says so
            channel.send(json.dumps(message).encode())


def _imported_files() -> Files:
    """The files of the imported modules as they are now."""
    names = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return {name: facts for name in names if name and (facts := _facts(name))}


def _facts(name: str) -> Facts | None:
    """What changes when a file is written or replaced, even by one with an older time (`cp -p`, a hard link, rsync, tar)."""
    with suppress(OSError):  # of a module that was never a file of its own
        found = Path(name).stat()
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return None


def _changed(files: Files) -> str:
    """A file of an imported module that is not what it was; '' if there is none."""
    return next((name for name, facts in files.items() if _facts(name) != facts), "")


def _serve(channel: socket.socket) -> tuple[int, ...] | None:
    """Fork a zygote or a worker for every request: its descriptors in the worker, None in the others when the agent is gone."""
    adopt_orphans()
    own: set[int] = set()
    """Processes that were asked for and have not ended."""
    ended, wake = os.pipe()
    os.set_blocking(ended, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only what has a handler wakes `select` up
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([channel.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, MESSAGE_BYTES)
            _bury(channel, own)
        if channel.fileno() in ready:
            request, descriptors, _, _ = socket.recv_fds(
                channel, MESSAGE_BYTES, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            if not request:
                return None
            if _fork(channel, descriptors, own):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(ended)
                os.close(wake)
                if request == b"zygote":
                    set_name("dtrain-zygote")
                    return _serve(socket.socket(fileno=descriptors[0]))
                return tuple(descriptors)


def _fork(channel: socket.socket, descriptors: list[int], own: set[int]) -> bool:
    """Whether this is the new process."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        pid = os.fork()
    except OSError as error:
        _say(channel, kind="refused", error=f"{error.strerror}")
    else:
        if pid == 0:
            channel.close()
            return True
        own.add(pid)
        _say(channel, kind="forked", pid=pid)
    for one in descriptors:
        os.close(one)
    return False


def _bury(channel: socket.socket, own: set[int]) -> None:
    """Tell the agent of every process of its that has ended; with the last one, end what they have left behind."""
    codes = {pid: code for pid, code in _ended(own) if pid in own}
    own.difference_update(codes)
    if codes and not own:
        _end_children()
    for pid, code in codes.items():
        _say(channel, kind="ended", pid=pid, code=code)


def _ended(own: Set[int]) -> Iterator[tuple[int, int]]:
    """The children that have ended, with their exit codes. The group of each of these is killed while its number is still its own."""
    with suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in own:
                kill_group(found.si_pid)
            yield found.si_pid, os.waitstatus_to_exitcode(os.waitpid(found.si_pid, 0)[1])


def _to_end(pid: int) -> list[int]:
    """The children of a process that end with it: all but the supervisors of submitted runs, and what these keep warm."""
    return [child for child in children(pid) if not outlives_attempts(child)]


def _end_children() -> None:
    """Kill everything below this process, which adopts what a process leaves when it ends, but no submitted run."""
    deadline = time.monotonic() + END_SECONDS
    while (there := _to_end(os.getpid())) and time.monotonic() < deadline:
        for child in filter(alive, there):
            kill_group(child)
        if not list(_ended(frozenset())):
            time.sleep(0.002)


def _leave() -> None:
    """The end of a worker, after its threads and exit handlers: as it is, without taking its objects apart, since freeing
    a DDP model can wait for a thread of gloo's that waits for Python (seen in torch 2.13, under any launcher)."""
    if _exit_code is None or _exit_code[0] != os.getpid():
        return  # a process that the user's code forked ends as it likes
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with suppress(Exception):
            if stream is not None:
                stream.flush()
    code = _exit_code[1]
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
