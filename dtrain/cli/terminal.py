"""Running, following and attaching to a run in this terminal, until it ends; returns its exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dtrain.cli import screen
from dtrain.cli.live_view import View
from dtrain.cli.options import Output
from dtrain.cli.summary import status, summary, table
from dtrain.common.errors import ClusterError, DtrainError, Exit
from dtrain.common.processes import discard_stdout
from dtrain.control import start
from dtrain.control.follow import Watcher
from dtrain.control.state import row, state_of
from dtrain.control.stop import stop
from dtrain.launch import target_recipe
from dtrain.record.events import Event
from dtrain.record.folder import RunDir, Submitted
from dtrain.record.status import RunState
from dtrain.report import comparison, run_record
from dtrain.show import render

MOST_AT_ONCE = 32
"""Runs that are stopped at the same time."""


def submit(run: RunDir, output: Output = Output.NORMAL) -> None:
    """Start a run inside its cluster, and print how to watch it, or its id alone."""
    print_submitted(run, start.submit(run), output)


def print_made_recipe(path: Path, run: RunDir, output: Output) -> None:
    """Say which recipe was made for a script, task or function that was named instead of one."""
    if output is Output.QUIET or not target_recipe.is_target(path):
        return
    job = run.job()
    epochs = job.train.epochs
    length = f", {epochs:g} {'epoch' if epochs == 1 else 'epochs'} (--set train.epochs=N)" if epochs else ""
    how = f"{job.kind} {job.target} on {render.counted(job.resources.workers, 'worker')} (--workers N){length}"
    print(f"made a recipe: {how}; it is kept in {_near(run.recipe_copy)}", flush=True)


def _near(path: Path) -> Path:
    """Return a path as a person in this folder names it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def print_submitted(run: RunDir, submitted: Submitted, output: Output) -> None:
    """Print how to watch a run that was started, or its id alone."""
    print(run.id if output is Output.QUIET else render.submitted(run.id, submitted), flush=True)


def run_here(run: RunDir, output: Output = Output.NORMAL, *, resumed: bool) -> int:
    """Run to its end, and show it; Ctrl-C asks it to save and stop, a second one to stop at once."""
    view, submissions = View(run, output, resumed=resumed), list[Submitted]()

    def on_submitted(submitted: Submitted) -> None:
        if output is not Output.QUIET:
            print_submitted(run, submitted, output)
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


def attach(run: RunDir, output: Output = Output.NORMAL) -> int:
    """Show a run that is supervised elsewhere until it ends; Ctrl-C asks whether to detach or to stop it."""
    state = state_of(run)
    if state.exit_code is not None or state.phase == "lost":
        print(status(state, run))
        return _code(state)
    watcher, view = Watcher(run), View(run, output, resumed=True)
    while True:
        try:
            with view:
                code = watcher.wait()
            break
        except KeyboardInterrupt:
            if not wants_to_stop(run.id):
                print(f"detached; {run.id} goes on. Watch it again: dtrain attach {run.id}")
                return int(Exit.DONE)
            _ask_to_stop(run, watcher)
            view = View(run, output, resumed=True)
    return _finish(run, code)


def stop_all(runs: Sequence[RunDir], *, now: bool, wait: bool) -> bool:
    """Stop these runs, at the same time, and print what came of it; False if one of several does not answer."""
    if len(runs) == 1:
        stopped = stop(runs[0], now=now, wait=wait)
        print(summary(stopped.ended, runs[0]) if stopped.ended else stopped.text)
        return True
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        answers = [pool.submit(stop, run, now=now, wait=wait) for run in runs]
        for run, answer in zip(runs, answers, strict=True):
            try:
                print(answer.result().text, flush=True)
            except DtrainError as error:
                print(f"dtrain: {run.id}: {error}", file=sys.stderr)
    return not any(answer.exception() for answer in answers)


def compared(started: Sequence[RunDir]) -> str:
    """Compare the members of a sweep; a single one, or one that cannot be read, is listed as by `dtrain ps`."""
    if len(started) > 1 and all(one.events.exists() for one in started):
        found = comparison.compare([run_record.read(one) for one in started])
        return render.columns([comparison.columns(found), *comparison.rows(found)])
    return table([row(one) for one in started], width=screen.width())


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


def wants_to_stop(name: str) -> bool:
    """Ask the person at the terminal; without one, or without an answer, what they watch goes on."""
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"\n[d]etach and leave {name} running, or [s]top it (it saves first)? [d] ")
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return answer.strip().lower().startswith("s")


def _code(state: RunState) -> int:
    return int(Exit.GAVE_UP) if state.exit_code is None else state.exit_code
