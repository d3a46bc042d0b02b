"""Runs on this machine: agents are child processes on pipes; several nodes are several agents, for trying things
out."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

from dtrain.agent import devices, gpu_leases
from dtrain.agent.warm import prewarm
from dtrain.api.cluster import Allocation, Cluster, Inbox, Submission, SubmissionState
from dtrain.api.pipes import PipedAgents
from dtrain.api.plan import LaunchPlan, supervisor_command
from dtrain.common import environment as variables
from dtrain.common import gpu
from dtrain.common.errors import ClusterError
from dtrain.common.processes import alive, command_line, start_detached
from dtrain.record.folder import RunDir

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class LocalOptions:
    """The local machine has none."""


class LocalAllocation(Allocation):
    """The agents of one run."""

    def __init__(self, plan: LaunchPlan, run: RunDir, inbox: Inbox) -> None:
        self._plan = plan
        self._run = run
        self._inbox = inbox
        self._replaced = 0
        self._avoided: frozenset[str] = frozenset(plan.avoided)
        self._numbers = count()
        """Numbers of simulated nodes."""
        self._leases = gpu_leases.Leases()
        self.channels: dict[str, PipedAgents] = {}

    def waits_for(self) -> str:
        """Take the GPUs as soon as enough are free, and start the agents of all nodes."""
        if self.channels:
            return ""
        if self._plan.job.resources.device == "gpu":
            allowed = gpu_leases.choice(self._plan.job.resources.gpus)
            if holders := self._leases.take(self._plan.workers, allowed, self._run.path):
                return f"{_counted(self._plan.workers)} of {len(allowed)}: {gpu_leases.told(holders)}"
        for _ in range(self._plan.nodes):
            self.start(self._next())
        return ""

    def _next(self) -> str:
        """The name of a node that there was not before, and that is not avoided."""
        names = (f"node{number}" for number in self._numbers)
        return next(name for name in names if self.machine(name) not in self._avoided)

    def start(self, node: str) -> None:
        """Start the agent of a node."""
        share = max(1, devices.cpus() // self._plan.nodes)
        environment = os.environ | {variables.ADDRESS: LOOPBACK, variables.CPUS: str(share)} | self._gpus(node)
        command = self._plan.agent_command(self._run, node)
        ready = prewarm.take(command, environment)
        self.channels[node] = PipedAgents([node], command, environment, self._inbox, process=ready)

    def _gpus(self, node: str) -> dict[str, str]:
        """The GPUs of one of several nodes on this machine: each has its own."""
        if not self._leases.gpus:
            return {}
        each = self._plan.workers_per_node
        number = int(_base(node).removeprefix("node"))
        mine = self._leases.gpus[number * each : (number + 1) * each]
        return {
            gpu.VISIBLE: ",".join(one.name for one in mine),
            variables.GPU_LEASES: ",".join(one.uuid for one in mine),
        }

    def replace(self, node: str) -> bool:
        """This machine always has room for another agent."""
        if node in self.channels:
            self.channels.pop(node).kill()
            self._replaced += 1
            if self.machine(node) in self._avoided:
                self.start(self._next())
            else:
                # A name of its own, so that the last words of the old agent are not taken for the new one's.
                self.start(f"{_base(node)}.{self._replaced}")
        return True

    def machine(self, node: str) -> str:
        """Simulated nodes stand for machines, one alone is this machine, and a GPU is only here."""
        alone = self._plan.nodes == 1 or self._plan.job.resources.device == "gpu"
        return "" if alone else _base(node)

    def avoid(self, machines: Collection[str]) -> None:
        self._avoided = frozenset(machines)

    def has_others(self, machines: Collection[str]) -> bool:
        """There is no end of simulated nodes."""
        return True

    def end(self) -> None:
        """Stop every agent."""
        threads = [threading.Thread(target=agent.end) for agent in self.channels.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._leases.release()


class Local(Cluster):
    """Runs in the foreground, or detached in a session of its own."""

    Options = LocalOptions
    same_machine = True

    def __init__(self, options: LocalOptions) -> None:
        self.options = options

    def supervises_locally(self) -> bool:
        """Whether to supervise here: always."""
        return True

    def problems(self, plan: LaunchPlan) -> list[str]:
        """Report more GPUs than there are, or names of GPUs that mean none or that something else overrides."""
        resources, wanted = plan.job.resources, plan.workers
        if resources.device != "gpu":
            return (
                ["resources.gpus names GPUs and resources.device is not gpu: add device: gpu"] if resources.gpus else []
            )
        if gpu.VISIBLE in plan.job.env:
            return [f"env.{gpu.VISIBLE} would undo which GPUs a run is given: name them in resources.gpus instead"]
        try:
            chosen = gpu_leases.choice(resources.gpus)
        except ClusterError as error:
            return [f"{error.message}: {error.hint}"]
        if os.environ.get(gpu.ORDER, gpu.BY_BUS) != gpu.BY_BUS and len(chosen) > 1 and chosen[0].name.isdigit():
            return [
                f"{gpu.ORDER}={os.environ[gpu.ORDER]} leaves open which GPU a number means: unset it, or name GPUs by UUID"
            ]
        there = len(chosen)
        if wanted <= there:
            return []
        instead = f"take --gpus {there}, " if there else ""
        return [
            f"{_counted(wanted)} are asked for and this machine has {there}: {instead}--workers {wanted} to train on CPUs, or another --cluster"
        ]

    def render(self, plan: LaunchPlan, run: RunDir) -> str:
        """The command of each agent."""
        nodes = [f"node{number}" for number in range(plan.nodes)]
        return "\n".join(shlex.join(plan.agent_command(run, node)) for node in nodes)

    def site_settings(self, plan: LaunchPlan, run: RunDir) -> list[str]:
        """Name the GPUs that a run may take."""
        if plan.job.resources.device != "gpu":
            return []
        names = ", ".join(one.name for one in gpu_leases.choice(plan.job.resources.gpus))
        return [f"takes {_counted(plan.workers)} that no other run has, of {names}"]

    @contextmanager
    def allocate(self, plan: LaunchPlan, run: RunDir, inbox: Inbox) -> Iterator[LocalAllocation]:
        allocation = LocalAllocation(plan, run, inbox)
        try:
            allocation.waits_for()
            yield allocation
        finally:
            allocation.end()

    def submit(self, plan: LaunchPlan, run: RunDir) -> str:
        environment = os.environ | {variables.SPARE: "1"}
        try:
            return str(start_detached(supervisor_command(run), run.logs / "supervisor.log", environment).pid)
        except OSError as error:
            raise ClusterError(f"cannot start the supervisor: {error}") from error

    def state(self, run: RunDir, reference: str) -> Submission:
        """Whether the supervisor lives; one that was just started needs a moment until it holds the run's lock."""
        if run.supervised():
            return Submission(SubmissionState.RUNNING, "RUNNING", reference=reference)
        if _is_supervisor(int(reference), run):
            return Submission(SubmissionState.RUNNING, "STARTING", reference=reference)
        return Submission(SubmissionState.GONE, reference=reference)

    def cancel(self, run: RunDir, reference: str) -> None:
        """Kill the supervisor: its agents end everything when their pipes close."""
        if _is_supervisor(int(reference), run):
            with suppress(ProcessLookupError):
                os.kill(int(reference), signal.SIGKILL)


def _counted(gpus: int) -> str:
    return f"{gpus} GPU{'' if gpus == 1 else 's'}"


def _base(node: str) -> str:
    """Return a node's name without the number of the agent that replaces an earlier one."""
    return node.partition(".")[0]


def _is_supervisor(pid: int, run: RunDir) -> bool:
    """Whether this process of this machine is the run's supervisor: process ids are used again."""
    return alive(pid) and command_line(pid)[-2:] == supervisor_command(run)[-2:]
