"""Measures the combinations of a bench by real runs, one after another, so that none disturbs another."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.api.plan import LaunchPlan
from dtrain.cli import foreground, queries, removal, render, runs_of_recipes
from dtrain.cli.bench_result import BenchResult, Row
from dtrain.cli.bench_variants import Length, Variant
from dtrain.cli.stop import stop
from dtrain.cli.watch import Watcher
from dtrain.common import environment
from dtrain.common.errors import DtrainError, Exit
from dtrain.common.files import users_folder
from dtrain.launch import measured_strategies, planner, registry
from dtrain.run import measurement
from dtrain.run.events import Event, Metrics, StopRequested
from dtrain.run.folder import RunDir
from dtrain.run.measurement import Measurement
from dtrain.supervisor.main import supervise

LOCK = "bench.lock"
POLL_SECONDS = 0.5
BUSY = 0.5
"""Load a processor from which the figures are said to be disturbed."""
BY_COMMAND = "stopped by dtrain stop"


class Interrupted(Exception):
    """Ctrl-C, or a signal to end, has stopped the run under way and ends the bench."""


class Bench:
    """The runs of a bench, and what they have measured so far."""

    def __init__(self, variants: Sequence[Variant], runs: Path, *, steps: int, repeats: int, quiet: bool) -> None:
        self._variants = variants
        self._runs = runs
        self._steps = steps
        self._repeats = repeats
        self._quiet = quiet
        """Nothing but the result goes to stdout."""
        self._rows = [Row(one, problem=one.problem or "not measured") for one in variants]
        self._measured: list[list[Measurement]] = [[] for _ in variants]
        self._codes: list[int] = []
        self._notes: list[str] = []
        self._interrupted = False

    @property
    def exit_code(self) -> int:
        """0 if anything was measured and nobody interrupted it; otherwise that of the first run that failed."""
        if self._interrupted:
            return int(Exit.INTERRUPTED)
        return int(Exit.DONE) if any(self._measured) else next(iter(self._codes), int(Exit.GAVE_UP))

    def run(self) -> BenchResult:
        """Measure all combinations, in turn if there are repeats; after a Ctrl-C, what has been measured until then."""
        os.environ.pop(environment.WARM, None)  # every run starts alike
        here = any(one.job and registry.cluster_of(one.job).same_machine for one in self._variants)
        try:
            with self._alone() if here else contextlib.nullcontext():
                self._note_load() if here else None
                for turn in range(self._repeats):
                    for index, variant in enumerate(self._variants):
                        if variant.job and (turn == 0 or self._measured[index]):
                            self._measure(index, turn)
        except (KeyboardInterrupt, Interrupted):
            self._interrupted = True
        return BenchResult(tuple(self._rows), self._steps, tuple(self._notes), self._interrupted)

    def say(self, text: str) -> None:
        """A line about the progress."""
        print(text, file=sys.stderr if self._quiet else sys.stdout, flush=True)

    def _measure(self, index: int, turn: int) -> None:
        variant = self._variants[index]
        assert variant.job is not None
        able = [place for place, one in enumerate(self._variants) if one.job]
        number = turn * len(able) + able.index(index) + 1
        title = f"[{number}/{self._repeats * len(able)}] {variant.label}"
        began = time.monotonic()
        run = runs_of_recipes.made(variant.job, variant.recipe, self._runs)
        problem = self._problem_of(run, title)
        found = Measurement() if problem else measurement.measure(run, Length(variant.job.train.steps or 1).warm_up)
        if not problem and not found.speeds:
            problem = "its steps were not reported"
        self._add(index, run, found, problem)
        _forget_checkpoints(run)
        result = problem or _in_short(found)
        self.say(f"{title}: {result} ({render.seconds(time.monotonic() - began)})")

    def _add(self, index: int, run: RunDir, found: Measurement, problem: str) -> None:
        row = self._rows[index]
        row = replace(row, runs=(*row.runs, run.id), strategy=run.job().strategy.name)
        if problem:
            if row.measurement:
                self._notes.append(f"one of the repeats of {row.variant.label} failed: {problem}")
            self._rows[index] = replace(row, problem="" if row.measurement else problem)
            return
        self._measured[index].append(found)
        mean = measurement.together(self._measured[index])
        self._rows[index] = replace(row, measurement=mean, problem="")
        job = self._variants[index].job
        measured = self._rows[index].facts
        if job and measured and (measured.loss is None or math.isfinite(measured.loss)):
            measured_strategies.keep(self._runs, job, run.id, measured)

    def _problem_of(self, run: RunDir, title: str) -> str:
        """Do a run to its end: '' if it is done, else why it is not; raises `Interrupted`."""
        launch = planner.make(run.job())
        stopped: list[str] = []
        try:
            here = registry.cluster_of(launch.job).supervises_locally()
            code = self._supervised(run, launch, title, stopped) if here else self._followed(run)
        except DtrainError as error:
            self._codes.append(int(error.exit_code))
            return error.message
        if any(why != BY_COMMAND for why in stopped):
            raise Interrupted
        if code == Exit.DONE:
            return ""
        self._codes.append(code)
        state = queries.state_of(run)
        return render.failure(state.failures[-1]) if state.failures else state.reason or state.outcome

    def _supervised(self, run: RunDir, launch: LaunchPlan, title: str, stopped: list[str]) -> int:
        shown = sys.stdout.isatty() and not self._quiet

        def hear(event: Event) -> None:
            if isinstance(event, StopRequested):
                stopped.append(event.why)
            elif isinstance(event, Metrics) and shown:
                print(f"\r\x1b[K{title}: step {event.step}/{launch.job.train.steps}", end="", flush=True)

        if shown:
            print(f"{title}: starting", end="", flush=True)
        foreground.announce(run, launch.job)
        try:
            return int(supervise(run, launch=launch, on_event=hear))
        finally:
            if shown:
                print("\r\x1b[K", end="", flush=True)

    def _followed(self, run: RunDir) -> int:
        """Submit, and wait for the end; Ctrl-C takes the run back, a second one at once."""
        with contextlib.redirect_stdout(sys.stderr) if self._quiet else contextlib.nullcontext():
            foreground.submit(run)
        try:
            return Watcher(run).wait()
        except KeyboardInterrupt:
            self.say(f"stopping {run.id}")
            try:
                stop(run, now=False, wait=True)
            except KeyboardInterrupt:
                stop(run, now=True, wait=False)
            raise Interrupted from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The only bench of this user on this machine: waits for another one to end."""
        path = users_folder(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / LOCK
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            waiting = False
            while not _locked(file.fileno()):
                if not waiting:
                    self.say(
                        f"another bench measures on this machine (process {file.read().strip()}): waiting for its end, "
                        "since two at once would disturb each other (Ctrl-C to leave)"
                    )
                waiting = True
                time.sleep(POLL_SECONDS)
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _note_load(self) -> None:
        load, processors = os.getloadavg()[0], len(os.sched_getaffinity(0))
        if load > BUSY * processors:
            self._notes.append(
                f"this machine was busy when the bench began (load {load:.1f} on {render.counted(processors, 'processor')}): "
                "an idle one gives other figures"
            )


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _forget_checkpoints(run: RunDir) -> None:
    """The weights of a short run are of no use; its events stay."""
    with contextlib.suppress(DtrainError, OSError):
        removal.remove(removal.planned(run), checkpoints_only=True)


def _in_short(found: Measurement) -> str:
    loss = "" if found.loss is None else f", loss {found.loss:.4g}"
    return f"{found.samples_per_second or 0.0:,.0f} samples/s{loss}"
