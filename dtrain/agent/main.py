"""Agent entry point: redirect streams, ignore signals, start the zygote, run the agent's loop."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dtrain.agent import devices
from dtrain.agent.fork_server import ForkServer
from dtrain.agent.warm import pool, prewarm
from dtrain.common import environment
from dtrain.common.processes import send_output_to, set_name

if TYPE_CHECKING:
    from dtrain.record.folder import RunDir

BEAT_SECONDS = 1.0
LEASE_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """`python -P -m dtrain agent RUN --node NAME …`, started by a cluster, or early as a spare."""
    # The supervisor decides when to stop; a cluster's or a terminal's signal to the whole group reaches it too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    set_name("dtrain-agent")
    commands, events = os.dup(0), os.dup(1)
    send_output_to(Path(os.devnull))
    if arguments[:1] == [pool.HOLD]:
        return _hold(float(arguments[1]), arguments[2:])
    spare = None
    if arguments == [prewarm.OPTION]:
        if not pool.Warmth.of(os.environ, None).keep_seconds:  # otherwise a resident lends the template
            spare = ForkServer((), environment.SAME_ORDER | os.environ)
        given = prewarm.wait(commands)
        if given is None:
            return 0
        arguments = given
    _serve(arguments, commands, events, spare)
    os._exit(0)


def _hold(seconds: float, arguments: list[str]) -> int:
    """Become a resident for runs whose agents have these arguments."""
    options = _options(arguments)
    from dtrain.record.folder import RunDir

    try:
        modules, variables = _imports(options, RunDir(options.run))
        pool.become(seconds, modules, os.environ | variables)
    except OSError as error:
        print(f"dtrain: nothing can stay warm: {error}", file=sys.stderr)
        return 1


def _serve(arguments: list[str], commands: int, events: int, spare: ForkServer | None) -> None:
    """Be the agent of one node until its run has ended, with the spare's zygote if that has imported what the run needs."""
    options = _options(arguments)
    leases = _join_leases(os.environ.get(environment.GPU_LEASES, ""))
    from dtrain.record.folder import RunDir

    run, private = RunDir(options.run), None
    if not run.job_file.exists():
        from dtrain.agent import node_run_folder

        private = node_run_folder.take(run.id)
        run = private.run
    send_output_to(run.logs / f"agent-{options.node}.log")
    modules, variables = _imports(options, run)
    warmth = pool.Warmth.of(os.environ, options.look)
    zygote = spare
    if spare and (
        warmth.keep_seconds or spare.modules != modules or not variables.items() <= spare.environment.items()
    ):
        spare.stop()
        zygote = None
    # The recipe's variables are there before a framework is imported, which may look at them.
    zygote = zygote or ForkServer(modules, os.environ | variables, warmth)
    from dtrain.agent.agent import Agent

    threading.Thread(target=_watch_supervisor, args=(run.claims, options.supervisor, commands), daemon=True).start()
    beat_seconds = min(BEAT_SECONDS, options.heartbeat / 4)
    streams = {"commands": commands, "events": events}
    agent = Agent(run, private, options.node, beat_seconds=beat_seconds, zygote=zygote, **streams)
    agent.serve()
    for lease in leases:
        lease.close()


def _join_leases(uuids: str) -> list[IO[str]]:
    if not uuids:
        return []
    from dtrain.agent import gpu_leases

    return gpu_leases.join(uuids.split(","))


def _imports(options: argparse.Namespace, run: RunDir) -> tuple[tuple[str, ...], dict[str, str]]:
    """The modules that are imported before workers are forked, and the recipe's variables; this process has all the others from now on."""
    threads = options.threads or max(1, devices.cpus() // max(1, options.processes * options.replicas))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads * options.replicas))
    # Threads that spin while they wait for each other make a small model 10 to 30 times slower on a machine that does
    # something else too; asleep, as many threads as there are CPUs were never slower than one (torch 2.13, 2 CPUs).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name, value in {**environment.SAME_ORDER, **devices.settings()}.items():
        os.environ.setdefault(name, value)
    variables = run.job().env if run.job_file.exists() else {}
    return tuple(name for name in options.preload.split(",") if name), variables


def _watch_supervisor(claims: Path, number: int, commands: int) -> None:
    """End the agent as the end of its stdin does when the supervisor with this number has left or another one has the run: if a
    cluster takes a living node for dead, it may never close the pipe. One look that fails says nothing."""
    from dtrain.record.lock import successor

    while number:
        time.sleep(LEASE_SECONDS)
        with suppress(OSError):
            if claims.is_dir() and successor(claims, number) is not None:
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
    parser.add_argument("--look", type=float)
    return parser.parse_args(arguments)
