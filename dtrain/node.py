"""How the agent of a node starts: streams and signals in order, the zygote first, since importing a framework takes longest."""

from __future__ import annotations

import argparse
import os
import signal
from multiprocessing import forkserver
from pathlib import Path

from dtrain import devices

BEAT_SECONDS = 1.0


def main(arguments: list[str]) -> int:
    """`python -P -m dtrain agent RUN --node NAME …`, started by a cluster."""
    parser = argparse.ArgumentParser(prog="dtrain agent")
    parser.add_argument("run", type=Path)
    parser.add_argument("--node", required=True)
    parser.add_argument("--preload", default="")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--heartbeat", type=float, default=30.0)
    options = parser.parse_args(arguments)
    commands, events = os.dup(0), os.dup(1)
    logs = options.run / "logs"
    log = os.open(
        logs / f"agent-{options.node}.log" if logs.is_dir() else os.devnull,
        os.O_WRONLY | os.O_CREAT | os.O_APPEND,
        0o666,
    )
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The supervisor decides when to stop; a cluster's or a terminal's signal to the whole group reaches it too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threads = options.threads or max(1, devices.cpus() // max(1, options.processes * options.replicas))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads * options.replicas))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    forkserver.set_forkserver_preload(["dtrain.zygote", "dtrain.worker", *filter(None, options.preload.split(","))])
    forkserver.ensure_running()
    from dtrain.agent import Agent
    from dtrain.rundir import RunDir

    beat_seconds = min(BEAT_SECONDS, options.heartbeat / 4)
    Agent(RunDir(options.run), options.node, beat_seconds=beat_seconds, commands=commands, events=events).serve()
    os._exit(0)
