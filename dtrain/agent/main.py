"""Agent entry point: redirect streams, ignore signals, start the zygote, run the agent's loop."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from dtrain.agent import devices, prewarm
from dtrain.agent.fork_server import ForkServer
from dtrain.common.processes import set_name

BEAT_SECONDS = 1.0
LEASE_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """`python -P -m dtrain agent RUN --node NAME …`, started by a cluster, or kept as a spare one."""
    # The supervisor decides when to stop; a cluster's or a terminal's signal to the whole group reaches it too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    set_name("dtrain-agent")
    commands, events = os.dup(0), os.dup(1)
    _send_output_to(Path(os.devnull))
    zygote = None
    if arguments == [prewarm.OPTION]:
        zygote = ForkServer((), os.environ)
        given = prewarm.wait(commands)
        if given is None:
            return 0
        arguments = given
    options = _options(arguments)
    from dtrain.run.folder import RunDir

    run, private = RunDir(options.run), None
    if not run.job_file.exists():
        from dtrain.agent import node_run_folder

        private = node_run_folder.take(run.id)
        run = private.run
    _send_output_to(run.logs / f"agent-{options.node}.log")
    threads = options.threads or max(1, devices.cpus() // max(1, options.processes * options.replicas))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads * options.replicas))
    # Threads that spin while they wait for each other make a small model 10 to 30 times slower on a machine that does
    # something else too; asleep, as many threads as there are CPUs were never slower than one (torch 2.13, 2 CPUs).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    modules = tuple(name for name in options.preload.split(",") if name)
    environment = run.job().env if run.job_file.exists() else {}
    if zygote and (modules or environment):
        zygote.stop()
        zygote = None
    # The recipe's variables are there before a framework is imported, which may look at them.
    zygote = zygote or ForkServer(modules, os.environ | environment)
    from dtrain.agent.agent import Agent

    threading.Thread(target=_watch_lease, args=(run.lock_file, commands), daemon=True).start()
    beat_seconds = min(BEAT_SECONDS, options.heartbeat / 4)
    streams = {"commands": commands, "events": events}
    Agent(run, private, options.node, beat_seconds=beat_seconds, zygote=zygote, **streams).serve()
    os._exit(0)


def _watch_lease(lock: Path, commands: int) -> None:
    """End the agent as the end of its stdin does when its supervisor has left or another one has the run: if a cluster
    takes a living node for dead, it may never close the pipe."""
    with suppress(OSError):
        mark = lock.read_text()
        while lock.read_text() == mark:
            time.sleep(LEASE_SECONDS)
        os.dup2(os.open(os.devnull, os.O_RDONLY), commands)


def _send_output_to(log: Path) -> None:
    """Keep the agent's stdin and stdout for the supervisor: what anybody else prints goes to this file."""
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(output)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dtrain agent")
    parser.add_argument("run", type=Path)
    parser.add_argument("--node", required=True)
    parser.add_argument("--preload", default="")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--heartbeat", type=float, default=30.0)
    return parser.parse_args(arguments)
