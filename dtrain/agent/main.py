"""Agent entry point: redirect streams, ignore signals, start the zygote, run the agent's loop."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.agent import devices
from dtrain.agent.fork_server import ForkServer
from dtrain.agent.warm import pool, prewarm, relay
from dtrain.common.processes import resident_megabytes, send_output_to, set_name
from dtrain.common.serde import JsonObject

if TYPE_CHECKING:
    from dtrain.record.folder import RunDir

BEAT_SECONDS = 1.0
LEASE_SECONDS = 5.0
WATCH_SECONDS = 0.5


def main(arguments: list[str]) -> int:
    """`python -P -m dtrain agent RUN --node NAME …`, started by a cluster, or kept as a spare or a warm one."""
    # The supervisor decides when to stop; a cluster's or a terminal's signal to the whole group reaches it too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    set_name("dtrain-agent")
    commands, events = os.dup(0), os.dup(1)
    send_output_to(Path(os.devnull))
    if arguments[:1] == [pool.OPTION]:
        return _stay_warm(Path(arguments[1]), float(arguments[2]), socket.socket(fileno=int(arguments[3])))
    if arguments[:1] == [pool.HOLD]:
        return _hold(float(arguments[1]), arguments[2:])
    if arguments[:1] == [pool.RELAY]:
        seconds, *arguments = arguments[1:]
        if relay.relayed(float(seconds), arguments, _run_variables(arguments), commands, events):
            return 0
    spare = None
    if arguments == [prewarm.OPTION]:
        spare = ForkServer((), os.environ)
        given = prewarm.wait(commands)
        if given is None:
            return 0
        arguments = given
    _serve(arguments, commands, events, spare)
    os._exit(0)


def _stay_warm(path: Path, seconds: float, first: socket.socket) -> int:
    """Serve a run, and others after it."""
    return _serve_runs(pool.Idle(path, seconds), (first, pool.request_on(first)))


def _hold(seconds: float, arguments: list[str]) -> int:
    """Be a warm agent for runs that have these arguments, from the first one on."""
    command = relay.canonical(arguments)
    found_by = pool.key(command, os.environ, _run_variables(arguments))
    idle = pool.Idle(pool.socket_path(found_by), seconds)
    return _serve_runs(idle, idle.wait((), 0.0))


def _run_variables(arguments: list[str]) -> dict[str, str]:
    """The recipe's, of the run that an agent with these arguments is for."""
    from dtrain.record.folder import RunDir

    return _variables_of(RunDir(_options(arguments).run))


def _variables_of(run: RunDir) -> dict[str, str]:
    return run.job().env if run.job_file.exists() else {}


def _serve_runs(idle: pool.Idle, found: tuple[socket.socket, JsonObject] | None) -> int:
    """Serve one run after the other with one zygote, for as long as none of what it imported has changed."""
    kept: ForkServer | None = None
    while found and found[1]:
        connection, request = found
        os.environ.clear()
        os.environ.update(request["environment"])
        if kept and kept.stale():
            kept.stop()
            kept = None
        commands, events = os.dup(connection.fileno()), os.dup(connection.fileno())
        connection.close()
        kept = _serve(request["arguments"], commands, events, kept)
        send_output_to(Path(os.devnull))
        usable = kept.warm and not kept.broken
        if usable:
            idle.listen()  # before the launcher sees that the run is over: who comes next finds this agent
        os.close(commands)
        os.close(events)
        found = idle.wait(kept.modules, resident_megabytes(kept.pid)) if usable else None
    return 0


def _serve(arguments: list[str], commands: int, events: int, zygote: ForkServer | None) -> ForkServer:
    """Be the agent of one node until its run has ended, with the zygote that is there if it has imported the same modules
    with the recipe's variables. Returns the zygote, which may be used again."""
    options = _options(arguments)
    from dtrain.record.folder import RunDir

    run, private = RunDir(options.run), None
    if not run.job_file.exists():
        from dtrain.agent import node_run_folder

        private = node_run_folder.take(run.id)
        run = private.run
    send_output_to(run.logs / f"agent-{options.node}.log")
    threads = options.threads or max(1, devices.cpus() // max(1, options.processes * options.replicas))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads * options.replicas))
    # Threads that spin while they wait for each other make a small model 10 to 30 times slower on a machine that does
    # something else too; asleep, as many threads as there are CPUs were never slower than one (torch 2.13, 2 CPUs).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    modules = tuple(name for name in options.preload.split(",") if name)
    variables = _variables_of(run)
    if zygote and not (zygote.modules == modules and variables.items() <= zygote.environment.items()):
        zygote.stop()
        zygote = None
    # The recipe's variables are there before a framework is imported, which may look at them.
    zygote = zygote or ForkServer(modules, os.environ | variables)
    from dtrain.agent.agent import Agent

    over = threading.Event()
    watch = threading.Thread(
        target=_watch_supervisor, args=(run.claims, options.supervisor, commands, over), daemon=True
    )
    watch.start()
    beat_seconds = min(BEAT_SECONDS, options.heartbeat / 4)
    streams = {"commands": commands, "events": events}
    agent = Agent(run, private, options.node, beat_seconds=beat_seconds, zygote=zygote, **streams)
    agent.serve()
    over.set()
    watch.join(WATCH_SECONDS)
    if watch.is_alive():  # a file server holds it up; it must not close what has this descriptor's number next
        os._exit(0)
    return agent.zygote


def _watch_supervisor(claims: Path, number: int, commands: int, over: threading.Event) -> None:
    """End the agent as the end of its stdin does when the supervisor with this number has left or another one has the run: if a
    cluster takes a living node for dead, it may never close the pipe. One look that fails says nothing."""
    from dtrain.record.lock import successor

    while number and not over.wait(LEASE_SECONDS):
        with suppress(OSError):
            if claims.is_dir() and successor(claims, number) is not None and not over.is_set():
                os.dup2(os.open(os.devnull, os.O_RDONLY), commands)
                return


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dtrain agent")
    parser.add_argument("run", type=Path)
    parser.add_argument("--node", required=True)
    parser.add_argument("--preload", default="")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--supervisor", type=int, default=0)
    parser.add_argument("--heartbeat", type=float, default=30.0)
    return parser.parse_args(arguments)
