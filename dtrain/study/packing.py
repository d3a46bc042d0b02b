"""One allocation of a cluster that packs the trials of a study: the study is handed in as a run is, and its process starts each trial on a
node of the allocation, as if it were alone there."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from dtrain.api.plan import supervisor_command
from dtrain.common.errors import ClusterError, UsageError
from dtrain.common.processes import start_detached
from dtrain.control import start
from dtrain.job.job import Job
from dtrain.launch import planner, registry
from dtrain.record import code_snapshot
from dtrain.record.folder import RunDir, Submitted
from dtrain.study.folder import StudyDir


def check(job: Job) -> None:
    """Raise `UsageError` for trials that cannot be packed."""
    if not job.tune or not job.tune.packing:
        return
    if not registry.cluster_of(job).packs:
        raise UsageError(
            f"tune.packing: the cluster '{job.cluster.name}' gives no allocation that trials could share",
            "Leave it out.",
        )
    if job.resources.nodes > 1:
        raise UsageError(
            f"tune.packing: each trial has a node of the allocation, or a part of one, and these have {job.resources.nodes} nodes",
            "Leave it out: each trial is a job of its own then.",
        )


def submit(study: StudyDir) -> None:
    """Ask the cluster for the allocation, in which the study's process runs."""
    job = study.job
    assert job.tune and job.tune.packing, "it is asked for"
    with code_snapshot.used(study.code, job.folder):
        launch = planner.make(job)
    each = 1 if job.tune.at_once == "auto" else math.ceil(job.tune.at_once / job.tune.packing)
    whole = replace(launch, nodes=job.tune.packing, workers_per_node=launch.workers_per_node * each)
    reference = registry.cluster_of(job).submit(whole, _as_run(study))
    _as_run(study).write_submitted(Submitted(job.cluster.name, reference, time.time()))


def cancel(study: StudyDir) -> None:
    """Idempotent. Give the allocation back, whatever runs in it."""
    if submitted := _as_run(study).submitted():
        cluster = registry.cluster(submitted.cluster, study.job.cluster.options)
        cluster.cancel(_as_run(study), submitted.reference)


def _as_run(study: StudyDir) -> RunDir:
    return RunDir(study.path)


def start_on_a_node(study: StudyDir, run: RunDir, busy: Iterable[str]) -> str:
    """Start a trial on the node with the fewest of those that are busy (one name for each trial there), as a run of that machine alone;
    returns the node. Raises `ClusterError` if the allocation has no node."""
    places = registry.cluster_of(study.job).places()
    if not places:
        raise ClusterError("the allocation has no node that answers", f"Go on in another one: dtrain resume {study.id}")
    there = Counter(busy)
    node = min(places, key=lambda name: there[name])
    start.announce(run, run.job())
    position = run.log_bytes()
    process = start_detached([*places[node], *supervisor_command(run)], run.logs / "supervisor.log")
    run.write_submitted(Submitted(registry.default("cluster"), str(process.pid), time.time(), position))
    return node
