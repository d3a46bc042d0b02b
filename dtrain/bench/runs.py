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

from dtrain.agent import usage_meter
from dtrain.bench import measurement
from dtrain.bench.measurement import Measurement
from dtrain.bench.result import BenchResult, Row
from dtrain.bench.variants import Length, Variant
from dtrain.common import environment, processes
from dtrain.common.errors import DtrainError, Exit
from dtrain.common.files import users_folder
from dtrain.control import create, remove, start, state
from dtrain.control.stop import stop
from dtrain.launch import bench_store, registry
from dtrain.record.events import Event, Metrics, StopRequested
from dtrain.record.folder import RunDir
from dtrain.show import render

LOCK = "bench.lock"
POLL_SECONDS = 0.5
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
        run = create.made(variant.job, variant.recipe, self._runs)
        others = OthersMeter()
        try:
            problem = self._problem_of(run, title, others)
        finally:
            remove.forget_checkpoints(run)
        found = Measurement() if problem else measurement.measure(run, Length(variant.job.train.steps or 1).warm_up)
        if not problem and not found.speeds:
            problem = "its steps were not reported"
        self._add(index, run, found, problem, others.share)
        result = problem or _in_short(found)
        self.say(f"{title}: {result} ({render.seconds(time.monotonic() - began)})")

    def _add(self, index: int, run: RunDir, found: Measurement, problem: str, others: float) -> None:
        row = self._rows[index]
        others = max(row.others, round(others, 3))
        row = replace(row, runs=(*row.runs, run.id), strategy=run.job().strategy.name, others=others)
        if problem:
            if row.measurement:
                self._notes.append(f"one of the repeats of {row.variant.label} failed: {problem}")
            self._rows[index] = replace(row, problem="" if row.measurement else problem)
            return
        self._measured[index].append(found)
        self._rows[index] = replace(row, measurement=measurement.together(self._measured[index]), problem="")
        job = self._variants[index].job
        measured = self._rows[index].facts
        if job and measured and (measured.loss is None or math.isfinite(measured.loss)):
            bench_store.keep(self._runs, job, run.id, measured)

    def _problem_of(self, run: RunDir, title: str, others: OthersMeter) -> str:
        """Do a run to its end: '' if it is done, else why it is not; raises `Interrupted`."""
        stopped: list[str] = []
        try:
            code = self._run_to_end(run, title, stopped, others)
        except DtrainError as error:
            self._codes.append(int(error.exit_code))
            return error.message
        if any(why != BY_COMMAND for why in stopped):
            raise Interrupted
        if code == Exit.DONE:
            return ""
        self._codes.append(code)
        return render.ended_why(state.state_of(run))

    def _run_to_end(self, run: RunDir, title: str, stopped: list[str], others: OthersMeter) -> int:
        """Return the exit code of a run; `stopped` gets the reasons of requests to stop it."""
        job = run.job()
        shown = sys.stdout.isatty() and not self._quiet
        here = registry.cluster_of(job).same_machine

        def hear(event: Event) -> None:
            if isinstance(event, StopRequested):
                stopped.append(event.why)
            elif isinstance(event, Metrics):
                others.look() if here else None
                if shown:
                    print(f"\r\x1b[K{title}: step {event.step}/{job.train.steps}", end="", flush=True)

        if shown:
            print(f"{title}: starting", end="", flush=True)
        try:
            return start.run_to_end(
                run, on_event=hear, on_submitted=lambda there: self.say(render.submitted(run.id, there)),
                on_interrupt=lambda _: self._take_back(run),
            )  # fmt: skip
        finally:
            if shown:
                print("\r\x1b[K", end="", flush=True)

    def _take_back(self, run: RunDir) -> None:
        """Stop a run that is followed; a second Ctrl-C stops it at once."""
        self.say(f"stopping {run.id}")
        try:
            stop(run, now=False, wait=True)
        except KeyboardInterrupt:
            stop(run, now=True, wait=False)
        raise Interrupted

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


class OthersMeter:
    """Measures how much of this machine other programs use while a run trains, from its first report to its last."""

    def __init__(self) -> None:
        self._first: tuple[float, float, float] | None = None
        self.share = 0.0
        """Share of all processors, 0 to 1."""

    def look(self) -> None:
        """At a report of the run."""
        busy, ticks = usage_meter.cpu_times()
        now = busy, ticks, processes.tree_cpu_seconds(os.getpid()) * os.sysconf("SC_CLK_TCK")
        first = self._first = self._first or now
        if now[1] > first[1]:
            used, all_there, own = (later - before for later, before in zip(now, first, strict=True))
            self.share = min(1.0, max(0.0, (used - own) / all_there))


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_short(found: Measurement) -> str:
    loss = "" if found.loss is None else f", loss {found.loss:.4g}"
    return f"{found.samples_per_second or 0.0:,.0f} samples/s{loss}"
