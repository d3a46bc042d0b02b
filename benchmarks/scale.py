"""What the supervisor itself costs as the nodes become many: the real supervisor, and scripted agents at the end of a pipe."""

from __future__ import annotations

import argparse
import os
import queue
import re
import resource
import shlex
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
from dtrain.api.cluster import Allocation, Inbox
from dtrain.api.pipes import PipedAgents
from dtrain.api.protocol import Command
from dtrain.job.job import Job, PluginChoice, Recovery, Resources, Train
from dtrain.launch import planner
from dtrain.record import event_log
from dtrain.record.events import CheckpointSaved
from dtrain.record.folder import RunDir, create
from dtrain.supervisor.inbox import SupervisorInbox
from dtrain.supervisor.leaving.stop_request import StopMode, StopRequest
from dtrain.supervisor.supervisor import run_attempts

RANKS = 8
KINDS = ("torchrun", "all", "task")
HEAD = "| kind | nodes | ranks | CPU s a minute | memory (MB) | start (s) | failure to decision (s) | last shard to commit (s) |"


@dataclass(frozen=True)
class Behind:
    """The channel of one of many nodes behind one pipe."""

    agents: PipedAgents
    node: str

    def send(self, command: Command) -> None:
        """See `Channel.send`."""
        self.agents.send(command, self.node)


class Crowd(Allocation):
    """A cluster whose agents are one script; everything else about it is the local one's."""

    def __init__(self, nodes: int, said: Path, seconds: float) -> None:
        self.nodes = nodes
        self.seconds = seconds
        """Until the run is stopped; a worker is lost halfway."""
        self.said = said
        """What the script measured."""
        self.requeues = False
        self.channels: dict[str, Behind] = {}

    @contextmanager
    def allocate(self, launch: plan.LaunchPlan, run: RunDir, inbox: Inbox) -> Iterator[Crowd]:
        """Start the script."""
        folder = [] if launch.job.kind == "script" else [str(run.path)]
        program = [sys.executable, f"{PROGRAMS}/crowd.py", str(self.nodes), str(RANKS), str(self.seconds / 2), *folder]
        names = [f"node{number}" for number in range(self.nodes)]
        command = ["sh", "-c", f"exec {shlex.join(program)} 2>{shlex.quote(str(self.said))}"]
        agents = PipedAgents(names, command, dict(os.environ), inbox)
        self.channels = {name: Behind(agents, name) for name in names}
        try:
            yield self
        finally:
            agents.end()

    def replace(self, node: str) -> bool:
        """Nothing is lost here."""
        return False

    def measured(self, what: str) -> float:
        """A number of the script's."""
        found = re.search(rf"{what} ([0-9.]+)", self.said.read_text())
        assert found, f"nothing was {what}:\n{self.said.read_text()}"
        return float(found[1])


def job_of(kind: str, nodes: int) -> Job:
    """A script under torchrun or under every launcher, or a task with checkpoints and ledgers."""
    workers = nodes * RANKS
    recovery = Recovery(restarts=10, heartbeat_seconds=120)
    resources = Resources(workers=workers, nodes=nodes)
    if kind == "task":
        train = Train(steps=1_000_000, global_batch=workers)
        choice = PluginChoice("ddp")
        return Job("scale", task="none.py:None", strategy=choice, folder="/", resources=resources, train=train, recovery=recovery)  # fmt: skip
    choice = PluginChoice("script", {"launcher": kind})
    return Job("scale", script="true", strategy=choice, folder="/", resources=resources, recovery=recovery)


def measure(kind: str, nodes: int, folder: Path, seconds: float) -> str:
    """One row of the table; in a process of its own, so that its memory is its own."""
    run = create(folder, job_of(kind, nodes))
    crowd: Any = Crowd(nodes, folder / "said", seconds)
    launch = planner.make(run.job())
    inbox: SupervisorInbox = queue.SimpleQueue()
    with run.lock() as lease:
        threading.Timer(seconds, inbox.put, [("", StopRequest(StopMode.IMMEDIATE, "measured"))]).start()
        began, cpu = time.monotonic(), time.process_time()
        run_attempts(run, launch, crowd, event_log.EventLog(run.events), inbox, lease)
        took, cpu = time.monotonic() - began, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    saved = [event.time for event in event_log.read(run.events) if isinstance(event, CheckpointSaved)]
    commit = f"{saved[0] - crowd.measured('saved'):.3f}" if kind == "task" else ""
    numbers = f"{crowd.measured('started'):.3f} | {crowd.measured('decided'):.3f} | {commit}"
    return f"| {kind} | {nodes} | {launch.workers} | {cpu / took * 60:.2f} | {memory:.0f} | {numbers} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--row", action="store_true", help="only the first of both, in this process")
    parser.add_argument("--seconds", type=float, help="of a row; default: 20, and 4 more for each thousand nodes")
    options = parser.parse_args()
    if options.row:
        with scratch() as name:
            nodes = options.nodes[0]
            print(measure(options.kinds[0], nodes, Path(name), options.seconds or 20 + nodes / 250))
        return
    print(f"### The supervisor's own cost\n\n{HEAD}\n|---|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        for nodes in options.nodes:
            command = [sys.executable, __file__, "--row", "--nodes", str(nodes), "--kinds", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            print(done.stdout.strip() or done.stderr, flush=True)


if __name__ == "__main__":
    main()
