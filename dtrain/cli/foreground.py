"""Running, following and attaching to a run in this terminal, until it ends; returns its exit code."""

from __future__ import annotations

import sys
import time

from dtrain.agent import prewarm
from dtrain.api.plan import LaunchPlan
from dtrain.cli.live_view import View
from dtrain.cli.queries import state_of
from dtrain.cli.stop import stop
from dtrain.cli.summary import status, summary
from dtrain.cli.watch import Watcher
from dtrain.common.errors import ClusterError, Exit
from dtrain.common.processes import discard_stdout
from dtrain.launch import planner, registry
from dtrain.run.folder import RunDir, Submitted
from dtrain.run.status import RunState
from dtrain.spec.job import Job
from dtrain.storage import run_sync
from dtrain.supervisor.main import supervise
from dtrain.supervisor.node_avoidance import plan_without


def announce(run: RunDir, job: Job) -> None:
    """Tell remote storage of a run; that it answers is better found now than at the first checkpoint."""
    copy = run_sync.of(run, job)
    if copy:
        copy.announce()


def submit(run: RunDir) -> None:
    """Start a run inside its cluster, detached from this terminal."""
    _submit(run, planner.make(run.job()))


def _submit(run: RunDir, launch: LaunchPlan) -> None:
    announce(run, launch.job)
    reference = registry.cluster_of(launch.job).submit(plan_without(launch, run), run)
    run.write_submitted(Submitted(launch.job.cluster.name, reference, time.time()))
    print(f"submitted {run.id} ({launch.job.cluster.name} {reference})")
    print(f"  watch it: dtrain attach {run.id}    dtrain logs -f {run.id}    stop it: dtrain stop {run.id}", flush=True)


def run_here(run: RunDir, *, resumed: bool) -> int:
    """Supervise in this process, or submit and follow if the cluster wants its supervisor inside; show it until it ends."""
    launch = planner.make(run.job())
    if not registry.cluster_of(launch.job).supervises_locally():
        prewarm.discard()
        return _submit_and_follow(run, launch, resumed=resumed)
    announce(run, launch.job)
    view = View(run, resumed=resumed)
    with view:
        code = supervise(run, launch=launch, on_event=view.hear)
    try:
        print(summary(view.state, run), flush=True)
    except BrokenPipeError:  # the reader went away; the run did not
        discard_stdout()
    return int(code)


def attach(run: RunDir) -> int:
    """Show a run that is supervised elsewhere until it ends; Ctrl-C asks whether to detach or to stop it."""
    state = state_of(run)
    if state.exit_code is not None or state.phase == "lost":
        print(status(state, run))
        return _code(state)
    watcher, view = Watcher(run), View(run, resumed=True)
    while True:
        try:
            with view:
                code = watcher.wait()
            break
        except KeyboardInterrupt:
            if not _wants_to_stop(run):
                print(f"detached; {run.id} goes on. Watch it again: dtrain attach {run.id}")
                return int(Exit.DONE)
            _ask_to_stop(run, watcher, now=watcher.stopping)
            view = View(run, resumed=True)
    return _finish(run, code)


def _submit_and_follow(run: RunDir, launch: LaunchPlan, *, resumed: bool) -> int:
    """Submit, and show it as if it were here: Ctrl-C asks it to save and stop, a second one to stop at once."""
    watcher, view = Watcher(run), View(run, resumed=resumed)
    _submit(run, launch)
    with view:
        while True:
            try:
                code = watcher.wait()
                break
            except KeyboardInterrupt:
                _ask_to_stop(run, watcher, now=watcher.stopping)
    return _finish(run, code)


def _finish(run: RunDir, code: int) -> int:
    state = state_of(run)
    print(summary(state, run) if state.exit_code is not None else status(state, run))
    return code


def _ask_to_stop(run: RunDir, watcher: Watcher, *, now: bool) -> None:
    """As `dtrain stop` does it, without its wait."""
    watcher.stopping = True
    try:
        print(stop(run, now=now, wait=False))
    except ClusterError as error:
        print(f"dtrain: {error}")
    watcher.ask_soon()


def _wants_to_stop(run: RunDir) -> bool:
    """Ask the person at the terminal; without one, or without an answer, the run goes on."""
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"\n[d]etach and leave {run.id} running, or [s]top it (it saves first)? [d] ")
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return answer.strip().lower().startswith("s")


def _code(state: RunState) -> int:
    return int(Exit.GAVE_UP) if state.exit_code is None else state.exit_code
