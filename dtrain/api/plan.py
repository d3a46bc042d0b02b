"""The launch plan: a job and the shape of its attempts, as values."""

from __future__ import annotations

import dataclasses
import sys

from dtrain.api.strategy import RankInfo
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.processes import SUPERVISE
from dtrain.job.job import Job
from dtrain.record.folder import RunDir

SHIPPED_JOB = "job.json"
"""Name, in a module that a cluster sends along with the supervisor, of the job, if the supervisor does not see the
run folder."""
SHIPPED_ENVIRONMENT = "environment.json"
"""Name, in the same module, of the variables of the supervisor's environment."""


@dataclass(frozen=True)
class Problem:
    """Why a job cannot run, and the part of the recipe that says so."""

    path: tuple[str | int, ...]
    message: str


@dataclass(frozen=True)
class LaunchPlan:
    """A job and the shape of its attempts; plugins are named by the job and found by `dtrain.launch.registry`."""

    job: Job
    nodes: int
    workers_per_node: int
    processes_per_node: int
    preload: tuple[str, ...]
    uneven: bool = False
    """Workers may take parts of the batch that differ by a sample."""
    avoided: tuple[str, ...] = ()
    """Nodes, as the cluster calls them, that it leaves out if it has others; see `Allocation.machine`."""
    supervisor: int = 0
    """Number of the supervisor's claim (`dtrain.record.lock`): its agents end when another one has the run. 0: they do not look."""

    @property
    def processes(self) -> int:
        """Worker processes of a full attempt: its world size."""
        return self.nodes * self.processes_per_node

    @property
    def workers(self) -> int:
        """Replicas of a full attempt."""
        return self.nodes * self.workers_per_node

    @property
    def replicas(self) -> int:
        """Number of devices of one process."""
        return self.workers_per_node // self.processes_per_node

    def on(self, nodes: int) -> LaunchPlan:
        """The same plan on another number of nodes."""
        return dataclasses.replace(self, nodes=nodes)

    def fits(self, nodes: int) -> bool:
        """Whether an attempt on this number of nodes has enough workers, and a part of the batch for each."""
        workers, train = nodes * self.workers_per_node, self.job.train
        if nodes < 1 or workers < (self.job.resources.min_workers or self.job.resources.workers):
            return False
        if self.job.kind == "script":
            return True
        if train.shards:
            return train.shards % workers == 0
        return train.global_batch >= workers if self.uneven else train.global_batch % workers == 0

    def ranks_by_node(self) -> list[list[RankInfo]]:
        """Return the ranks of each node's worker processes."""
        each = self.processes_per_node
        return [
            [
                RankInfo(node * each + local, self.processes, local, each, node, self.nodes, self.replicas)
                for local in range(each)
            ]
            for node in range(self.nodes)
        ]

    def agent_command(self, run: RunDir, node: str) -> list[str]:
        """How a cluster starts the agent of a node. `-P` keeps the working directory off the module path."""
        preload = [f"--preload={','.join(self.preload)}"] if self.preload else []
        threads = self.job.resources.cpus_per_worker
        return [
            sys.executable, "-P", "-m", "dtrain", "agent", str(run.path), f"--node={node}", *preload,
            f"--processes={self.processes_per_node}", f"--replicas={self.replicas}",
            *([f"--threads={threads}"] if threads else []),
            *([f"--supervisor={self.supervisor}"] if self.supervisor else []),
            f"--heartbeat={self.job.recovery.heartbeat_seconds}",
        ]  # fmt: skip


def supervisor_command(run: RunDir) -> list[str]:
    """How a cluster starts the supervisor of a submitted run: everywhere the same."""
    return [sys.executable, "-P", *SUPERVISE, str(run.path)]
