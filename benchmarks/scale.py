"""What the supervisor itself costs as the nodes become many: the real supervisor, and scripted agents at the end of a pipe."""

from __future__ import annotations

import argparse
import os
import queue
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side_by_side import PROGRAMS, scratch

from dtrain.api import plan
from dtrain.api.cluster import Inbox
from dtrain.api.pipes import PipedAgents
from dtrain.api.protocol import Command
from dtrain.launch import planner
from dtrain.run import event_log
from dtrain.run.folder import RunDir, create
from dtrain.spec.job import Job, PluginChoice, Recovery, Resources
from dtrain.supervisor.inbox import SupervisorInbox
from dtrain.supervisor.stop_request import StopMode, StopRequest
from dtrain.supervisor.supervisor import Supervisor

RANKS = 8
RUN_SECONDS = 20.0


@dataclass(frozen=True)
class Behind:
    """The channel of one of many nodes behind one pipe."""

    agents: PipedAgents
    node: str

    def send(self, command: Command) -> None:
        """See `Channel.send`."""
        self.agents.send(command, self.node)


class Crowd:
    """A cluster whose agents are one script; everything else about it is the local one's."""

    def __init__(self, nodes: int, errors: Path) -> None:
        self.nodes = nodes
        self.errors = errors
        self.channels: dict[str, Behind] = {}

    @contextmanager
    def allocate(self, launch: plan.LaunchPlan, run: RunDir, inbox: Inbox) -> Iterator[Crowd]:
        """Start the script."""
        program = f"exec {sys.executable} {PROGRAMS}/crowd.py {self.nodes} {RANKS} {RUN_SECONDS / 2} 2>{self.errors}"
        names = [f"node{number}" for number in range(self.nodes)]
        agents = PipedAgents(names, ["sh", "-c", program], dict(os.environ), inbox)
        self.channels = {name: Behind(agents, name) for name in names}
        try:
            yield self
        finally:
            agents.end()

    def replace(self, node: str) -> bool:
        """Nothing is lost here."""
        return False


def measure(nodes: int, folder: Path) -> str:
    """One row of the table; in a process of its own, so that its memory is its own."""
    job = Job(
        name="scale", script="true", strategy=PluginChoice("script", {"launcher": "torchrun"}), folder="/", resources=Resources(workers=nodes * RANKS, nodes=nodes),
        recovery=Recovery(restarts=10, heartbeat_seconds=60),
    )  # fmt: skip
    run = create(folder, job)
    crowd: Any = Crowd(nodes, folder / "decided")
    launch = planner.make(job)
    inbox: SupervisorInbox = queue.SimpleQueue()
    with run.lock() as lease:
        supervisor = Supervisor(run, launch, crowd, event_log.EventLog(run.events), inbox, lease)
        threading.Timer(
            RUN_SECONDS + nodes / 250, inbox.put, [("", StopRequest(StopMode.IMMEDIATE, "measured"))]
        ).start()
        began, cpu = time.monotonic(), time.process_time()
        supervisor.run()
        took, cpu = time.monotonic() - began, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    decided = re.search(r"decided ([0-9.]+)", crowd.errors.read_text())
    assert decided, "the supervisor did not answer the failure"
    return f"| {nodes} | {nodes * RANKS} | {cpu / took * 60:.2f} | {memory:.0f} | {float(decided[1]):.3f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, help="only this many, as one row")
    only = parser.parse_args().nodes
    if only:
        with scratch() as name:
            print(measure(only, Path(name)))
        return
    print(
        "### The supervisor's own cost\n\n| nodes | ranks | CPU s a minute | memory (MB) | failure to decision (s) |\n|---|---|---|---|---|"
    )
    for nodes in (10, 100, 1000):
        done = subprocess.run(
            [sys.executable, __file__, "--nodes", str(nodes)], capture_output=True, text=True, check=False
        )
        print(done.stdout.strip() or done.stderr)


if __name__ == "__main__":
    main()
