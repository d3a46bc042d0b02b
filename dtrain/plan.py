"""From a job to what would run where: pure, so that `dtrain plan` shows exactly what `dtrain run` does."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtrain import plugins, remote, usercode
from dtrain.cluster import Cluster
from dtrain.errors import nearest
from dtrain.job import Job, PluginChoice
from dtrain.rundir import RunDir
from dtrain.strategy import Checks, Place, Resolves, Strategy, Trains

DEFAULT_SHARDS = 8
SHIPPED_JOB = "DTRAIN_JOB"
"""The job as JSON, for a supervisor that may not see the run folder; it is started in a copy of the recipe's folder then."""


@dataclass(frozen=True)
class Problem:
    """Why a job cannot run, and the part of the recipe that says so."""

    path: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class LaunchPlan:
    """A job with its plugins and the shape of its attempts."""

    job: Job
    strategy: Strategy
    cluster: Cluster
    nodes: int
    workers_per_node: int
    processes_per_node: int
    preload: tuple[str, ...]

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
        """Devices of one process."""
        return self.workers_per_node // self.processes_per_node

    def on(self, nodes: int) -> LaunchPlan:
        """The same run on another number of nodes."""
        return dataclasses.replace(self, nodes=nodes)

    def fits(self, nodes: int) -> bool:
        """Whether an attempt on so many nodes has enough workers, and whole shards for each."""
        workers = nodes * self.workers_per_node
        least = self.job.resources.min_workers or self.job.resources.workers
        return (
            nodes > 0
            and workers >= least
            and (self.job.kind == "script" or (self.job.train.shards or 1) % workers == 0)
        )

    def places(self) -> list[list[Place]]:
        """For each node, the places of its worker processes."""
        each = self.processes_per_node
        return [
            [
                Place(node * each + local, self.processes, local, each, node, self.nodes, self.replicas)
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
            f"--heartbeat={self.job.recovery.heartbeat_seconds}",
        ]  # fmt: skip


def supervisor_command(run: RunDir) -> list[str]:
    """How a cluster starts the supervisor of a submitted run: everywhere the same."""
    return [sys.executable, "-P", "-m", "dtrain", "supervise", str(run.path)]


def resolve(job: Job) -> Job:
    """Fix what the recipe leaves open for the life of the run: the strategy that `auto` stands for, the number of shards."""
    strategy = plugins.strategy(job.strategy.name, job.strategy.options)
    if isinstance(strategy, Resolves):
        name, options, reason = strategy.resolve(job)
        job = dataclasses.replace(job, strategy=PluginChoice(name, options, reason))
    return _with_shards(job)


def _with_shards(job: Job) -> Job:
    if job.train.shards or job.kind == "script":
        return job
    workers, batch = job.resources.workers, job.train.global_batch
    shards = next((n for n in range(DEFAULT_SHARDS, 0, -1) if batch % n == 0 and n % workers == 0), workers)
    return dataclasses.replace(job, train=dataclasses.replace(job.train, shards=shards))


def make(job: Job) -> LaunchPlan:
    """The plan of a job whose `problems` are none."""
    job = resolve(job)
    strategy = plugins.strategy(job.strategy.name, job.strategy.options)
    cluster = plugins.cluster(job.cluster.name, job.cluster.options)
    nodes, workers = job.resources.nodes, job.resources.workers
    per_node = max(1, workers // nodes)
    processes = max(1, strategy.processes(per_node, job.resources.device))
    return LaunchPlan(
        job,
        strategy,
        cluster,
        nodes,
        per_node,
        processes,
        tuple(dict.fromkeys((*strategy.preload(job), *job.preload))),
    )


def problems(job: Job) -> list[Problem]:
    """Everything that keeps a job from running, each with what to do instead; empty: it can start."""
    found = [*_of_target(job), *_of_numbers(job), *_of_storage(job)]
    if found:
        return found
    plan = make(job)
    found += _of_strategy(plan)
    return found + [Problem(("resources",), problem) for problem in plan.cluster.problems(plan)]


def _of_target(job: Job) -> Iterator[Problem]:
    named = [kind for kind in ("task", "function", "script") if getattr(job, kind)]
    if len(named) != 1:
        given = f"it names {' and '.join(named)}" if named else "it names none"
        yield Problem((named[-1],) if named else (), f"a recipe runs one of task, function and script: {given}")
    elif job.kind != "script":
        kind = ast.ClassDef if job.kind == "task" else ast.FunctionDef
        if text := usercode.problem(job.target, Path(job.folder), kind):
            yield Problem((job.kind,), text)
    elif text := _of_script(job):
        yield Problem(("script",), text)
    if job.kind == "script" and job.params:
        yield Problem(("params",), "a script takes `args`, not `params`")
    if job.kind != "script" and job.args:
        yield Problem(("args",), f"a {job.kind} takes `params`, not `args`")


def _of_script(job: Job) -> str:
    path = Path(job.folder) / str(job.script)
    if path.suffix == ".py":
        tree = usercode.parsed(path)
        return tree if isinstance(tree, str) else ""
    if path.is_file() and not os.access(path, os.X_OK):
        return f"{path} is no Python file and may not be executed: chmod +x {path}"
    if path.is_file() or shutil.which(str(job.script)):
        return ""
    others = [str(file.relative_to(job.folder)) for file in Path(job.folder).glob("*.py")]
    return f"there is no file {path} and no program '{job.script}'. {nearest(str(job.script), others) if others else ''}".rstrip()


def _of_numbers(job: Job) -> Iterator[Problem]:
    resources, train = job.resources, job.train
    if resources.workers % resources.nodes:
        near = math.ceil(resources.workers / resources.nodes) * resources.nodes
        yield Problem(
            ("resources", "workers"),
            f"{resources.workers} workers cannot be spread evenly over {resources.nodes} nodes: take {near} workers",
        )
    if (resources.min_workers or 0) > resources.workers:
        yield Problem(("resources", "min_workers"), f"min_workers is above workers ({resources.workers})")
    if job.kind == "script":
        return
    if (train.steps is None) == (train.epochs is None):
        yield Problem(("train",), "give train.steps or train.epochs, one of the two")
    workers = resources.workers
    if train.shards and train.shards % workers:
        near = math.ceil(train.shards / workers) * workers
        yield Problem(
            ("train", "shards"),
            f"{train.shards} shards cannot be shared evenly by {workers} workers: take {near} shards, or workers that divide {train.shards}",
        )
    parts, what = (train.shards, "shards") if train.shards else (workers, "workers")
    if train.global_batch % parts:
        lower = train.global_batch // parts * parts
        batches = f"{lower} or {lower + parts}" if lower else str(parts)
        yield Problem(
            ("train", "global_batch"),
            f"a global batch of {train.global_batch} cannot be divided by {parts} {what}: take {batches}",
        )


def _of_storage(job: Job) -> Iterator[Problem]:
    if job.storage.url is not None and (text := remote.url_problem(job.storage.url)):
        yield Problem(("storage", "url"), text)


def _of_strategy(plan: LaunchPlan) -> Iterator[Problem]:
    job, strategy = plan.job, plan.strategy
    if job.kind != "script" and not isinstance(strategy, Trains):
        yield Problem(
            ("strategy",), f"the strategy '{job.strategy.name}' runs scripts only: choose one that trains a {job.kind}"
        )
    if isinstance(strategy, Checks):
        for problem in strategy.problems(job.resources):
            yield Problem(("strategy",), problem)
    if strategy.framework and job.cluster.name == "local" and importlib.util.find_spec(strategy.framework) is None:
        yield Problem(("strategy",), missing(job.strategy.name, strategy.framework))


def missing(strategy: str, framework: str) -> str:
    """The message for a framework that is not installed."""
    return f"the strategy '{strategy}' needs {framework}, which is not installed: pip install 'dtrain[{framework}]'"
