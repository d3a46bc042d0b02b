"""Starts runs and brings them to their end: supervised in this process, or inside their cluster."""

from __future__ import annotations

import time
from collections.abc import Callable

from dtrain.agent.warm import prewarm
from dtrain.api.plan import LaunchPlan
from dtrain.control.follow import Watcher
from dtrain.job.job import Job
from dtrain.launch import planner, registry
from dtrain.record import code_snapshot
from dtrain.record.events import Event
from dtrain.record.folder import RunDir, Submitted
from dtrain.storage import run_sync
from dtrain.supervisor.main import supervise
from dtrain.supervisor.nodes.avoidance import plan_without


def ignore(_: object) -> None:
    """A listener that does nothing."""


def announce(run: RunDir, job: Job) -> None:
    """Write a run to its remote storage; an unreachable storage is better found now than at the first checkpoint."""
    copy = run_sync.of(run, job)
    if copy:
        copy.announce()


def _planned(run: RunDir) -> LaunchPlan:
    """Plan a run with the code that it trains from."""
    job = run.job()
    with code_snapshot.used(run.code, job.folder):
        return planner.make(job)


def submit(run: RunDir) -> Submitted:
    """Start a run inside its cluster, detached from this process."""
    launch = _planned(run)
    announce(run, launch.job)
    position = run.log_bytes()
    reference = registry.cluster_of(launch.job).submit(plan_without(launch, run), run)
    submitted = Submitted(launch.job.cluster.name, reference, time.time(), position)
    run.write_submitted(submitted)
    return submitted


def run_to_end(
    run: RunDir, *, on_event: Callable[[Event], None] = ignore, on_submitted: Callable[[Submitted], None] = ignore,
    on_interrupt: Callable[[Watcher], None] | None = None,
) -> int:  # fmt: skip
    """Supervise a run in this process, or submit and follow it if its cluster wants the supervisor inside; returns its exit code.

    `on_event` gets every event, from several threads. Ctrl-C stops a run that is supervised here; of one that is followed it calls
    `on_interrupt`, which may raise, or, without that, raises KeyboardInterrupt."""
    launch = _planned(run)
    if registry.cluster_of(launch.job).supervises_locally():
        announce(run, launch.job)
        return int(supervise(run, launch=launch, on_event=on_event))
    prewarm.discard()
    watcher = Watcher(run, on_event)
    on_submitted(submit(run))
    return watcher.wait(on_interrupt)
