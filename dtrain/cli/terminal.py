"""Running, following and attaching to a run in this terminal, until it ends; returns its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from dtrain.cli.live_view import View
from dtrain.cli.summary import status, summary, table
from dtrain.common.errors import ClusterError, Exit
from dtrain.common.processes import discard_stdout
from dtrain.control import start
from dtrain.control.follow import Watcher
from dtrain.control.state import row, state_of
from dtrain.control.stop import stop
from dtrain.control.sweep_queue import SweepQueue
from dtrain.record.events import Event
from dtrain.record.folder import RunDir, Submitted
from dtrain.record.status import RunState
from dtrain.report import comparison, run_record
from dtrain.show import render


def submit(run: RunDir) -> None:
    """Start a run inside its cluster, and print how to watch it."""
    print(render.submitted(run.id, start.submit(run)), flush=True)


def run_here(run: RunDir, *, resumed: bool) -> int:
    """Run to its end, and show it; Ctrl-C asks it to save and stop, a second one to stop at once."""
    view, submissions = View(run, resumed=resumed), list[Submitted]()

    def on_submitted(submitted: Submitted) -> None:
        print(render.submitted(run.id, submitted), flush=True)
        submissions.append(submitted)

    def on_event(event: Event) -> None:
        if not submissions:  # otherwise the view reads the event log itself
            view.hear(event)

    with view:
        code = start.run_to_end(
            run, on_event=on_event, on_submitted=on_submitted, on_interrupt=lambda watcher: _ask_to_stop(run, watcher)
        )
    if submissions:
        return _finish(run, code)
    try:
        print(summary(view.state, run), flush=True)
    except BrokenPipeError:  # the reader went away; the run did not
        discard_stdout()
    return code


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
            _ask_to_stop(run, watcher)
            view = View(run, resumed=True)
    return _finish(run, code)


def run_queue(members: Sequence[Callable[[], RunDir]], at_most: int) -> int:
    """Run the members of a sweep, `at_most` at once, and print a table of them; Ctrl-C starts no more."""
    queue = SweepQueue(list(members), at_most)
    try:
        return queue.run(lambda run, submitted: print(render.submitted(run.id, submitted), flush=True))
    except KeyboardInterrupt:
        print(f"{len(queue.waiting)} runs were not started; {len(queue.active)} go on (dtrain stop RUN)")
        return int(Exit.INTERRUPTED)
    finally:
        if queue.started:
            print(_table(queue.started), flush=True)


def _table(started: Sequence[RunDir]) -> str:
    """Compare the members of a sweep; a single one, or one that cannot be read, is listed as by `dtrain ps`."""
    if len(started) > 1 and all(one.events.exists() for one in started):
        found = comparison.compare([run_record.read(one) for one in started])
        return render.columns([comparison.columns(found), *comparison.rows(found)])
    return table([row(one) for one in started])


def _finish(run: RunDir, code: int) -> int:
    state = state_of(run)
    print(summary(state, run) if state.exit_code is not None else status(state, run))
    return code


def _ask_to_stop(run: RunDir, watcher: Watcher) -> None:
    """Ask as `dtrain stop` does, at once if it was asked before, without its wait."""
    now, watcher.stopping = watcher.stopping, True
    try:
        print(stop(run, now=now, wait=False).text)
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
