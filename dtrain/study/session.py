"""The process of a study: starts trials, promotes and ends them, until there is nothing left to start.

What it decides follows from the journal and from the runs of the trials, so that a new process goes on where one was killed: a run that
was going on is attached to, one that has left is taken note of, and one that was never started is started."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dtrain.agent import devices, gpu_leases
from dtrain.common.errors import CheckpointError, DtrainError, Exit, UsageError, UserError
from dtrain.control import start, take_over
from dtrain.control import stop as stopping
from dtrain.control.follow import Watcher
from dtrain.control.state import goes_on
from dtrain.job import code, entrypoint
from dtrain.launch import registry, tuning
from dtrain.launch.tuning import GRID, PBT
from dtrain.record import code_snapshot, mailbox
from dtrain.record.events import Evaluation, Event, Metrics
from dtrain.study import packing, plain_journal, trial_run
from dtrain.study.cost import budget_spent
from dtrain.study.folder import StudyDir
from dtrain.study.journal import Trial
from dtrain.study.population import Member, take_overs
from dtrain.study.rungs import ladder_of
from dtrain.supervisor.leaving.stop_request import STOPPED

POLL_SECONDS = 0.05
SAME_FAILURES = 3
"""Of the first so many trials, if all fail in the same way, the study ends."""
RELAUNCHES = 3
"""Times that a trial whose supervisor was killed or told to leave is started again."""
LEFT = (Exit.RESUMABLE, Exit.INTERRUPTED)
IN_A_QUEUE = 8
"""Trials at once where a cluster has a queue."""


class Session:
    """The study while this process works on it."""

    def __init__(self, study: StudyDir) -> None:
        tune = study.tune
        self._study, self._tune = study, tune
        self._space = {key: tuning.domain(value) for key, value in tune.over.items()}
        self._measure = _measure_of(study)
        self._ladder = ladder_of(study.job, tune)
        self._journal = plain_journal.opened(study.journal, study.id, tune, write=True)
        self._trials = self._journal.trials()
        self._active: dict[int, Watcher] = {}
        self._ended: set[int] = set()
        """Active trials whose runs have logged their end."""
        self._relaunches: dict[int, int] = {}
        self._displaced: list[int] = []
        """Trials whose nodes were lost, and that go on when there is room."""
        self._nodes: dict[int, str] = {}
        """Trial → its node in an allocation that packs them."""
        self._grid = (
            list(itertools.product(*(domain.grid() for domain in self._space.values()))) if tune.sampler == GRID else []
        )
        self._most = tuning.trials_of(tune)
        self._at_once = at_once(study)
        self._asked_to_stop = ""
        self._seen: set[str] = set()
        """Names of numbers that trials have reported."""
        self._kinds: set[type] = set()
        """Events in which they were."""
        self._problem: DtrainError | None = None

    def run(self, stopped: Callable[[], bool]) -> tuple[Exit, str]:
        """Work until nothing is left to be started; returns the exit code and the reason. `stopped`: whether a signal asks to stop."""
        self._recover()
        while True:
            self._hear(stopped)
            ended = [number for number, watcher in self._active.items() if self._has_left(number, watcher)]
            for number in ended:
                del self._active[number]
                self._conclude(number)
            while self._may_start() and self._start_next():
                pass
            if not self._active:
                return self._end()
            if not ended:
                time.sleep(POLL_SECONDS)

    def _hear(self, stopped: Callable[[], bool]) -> None:
        """Take requests to stop, and pass them on to the runs."""
        wanted = [text for kind, text in self._study.mailbox.take() if kind == mailbox.STOP]
        wanted += ["leave"] if stopped() and not self._asked_to_stop else []
        if self._problem and not self._asked_to_stop:
            wanted.append("now")
        for how in wanted:
            self._asked_to_stop = how
            for number in self._active:
                stopping.ask(self._study.trial(number), how)

    def _has_left(self, number: int, watcher: Watcher) -> bool:
        """Whether the run has ended, and its supervisor let go of it; a watcher tells of an end once."""
        if watcher.poll() is not None:
            self._ended.add(number)
        if number not in self._ended or self._study.trial(number).supervised():
            return False
        self._ended.discard(number)
        return True

    def _recover(self) -> None:
        """Take up the trials that an earlier process of the study has left."""
        for trial in [one for one in self._trials if one.goes_on]:
            run = self._study.trial(trial.number)
            if not trial_run.is_made(run):
                if trial.rungs:
                    self._fail(trial.number, "its run was removed")
                else:
                    self._begin(trial)
            elif goes_on(run) and (run.supervised() or run.submitted()):
                self._watch(trial.number)
            else:
                self._conclude(trial.number, known=trial.rungs)

    def _conclude(self, number: int, known: dict[int, float] | None = None) -> None:
        """Take note of how far a trial is whose run has left. `known`: its rungs, if an earlier process of the study knew them."""
        try:
            found = trial_run.progress(self._study.trial(number), self._measure)
        except UserError as error:
            self._problem = self._problem or error
            return
        at, code = found.state.step, found.state.exit_code
        if found.is_at_rung:
            if at not in (known or {}) and self._has_metric(found):
                self._journal.report(number, at, _finite(found.value, self._measure), found.seconds)
        elif code == Exit.DONE and at not in (known or {}):
            if self._has_metric(found):
                self._complete(number, found)
        elif self._asked_to_stop:
            pass
        elif known is not None and code in (None, Exit.DONE, *LEFT):
            self._launch(number)
        elif code in LEFT and found.state.reason.startswith(STOPPED):
            self._stopped(number, found)
        elif code in (None, *LEFT) and self._relaunches.get(number, 0) < RELAUNCHES:
            self._relaunches[number] = self._relaunches.get(number, 0) + 1
            self._launch(number)
        elif found.lacks_nodes and self._relaunches.get(number, 0) < RELAUNCHES:
            self._relaunches[number] = self._relaunches.get(number, 0) + 1
            self._at_once = max(1, len(self._active))  # there is no room for more
            self._displaced.append(number)
        else:
            self._fail(number, found.failure + self._hint(number, at), step=at, seconds=found.seconds)
        self._trials = self._journal.trials()

    def _stopped(self, number: int, found: trial_run.Progress) -> None:
        """Take note of a trial that a person has stopped: with its value so far, and not to go on."""
        if self._measure and found.value is not None:
            self._journal.report(number, found.state.step, _finite(found.value, self._measure), found.seconds)
        self._journal.end(number, "stopped early", failure=STOPPED, step=found.state.step, seconds=found.seconds)

    def _hint(self, number: int, step: int) -> str:
        """What may be wrong with a trial that fails as soon as it has the state of another one."""
        taken = self._trials[number].took_over
        if not taken or taken[-1].step != step:
            return ""
        return f" (with the state of trial {taken[-1].trial}: leave what the shape of the model depends on out of tune.perturb)"

    def _complete(self, number: int, found: trial_run.Progress) -> None:
        """Take note of a trial that has done all its steps, or has ended by itself before."""
        if found.value is not None and found.value != found.value:
            self._fail(number, f"no finite value of {self._tune.metric}", step=found.state.step, seconds=found.seconds)
        else:
            value = found.value if self._measure else 0.0
            self._journal.end(number, "done", value, step=found.state.step, seconds=found.seconds)

    def _has_metric(self, found: trial_run.Progress) -> bool:
        if self._measure and found.value is None:
            self._problem = self._problem or _missing(self._measure.name, found.reported)
        return self._problem is None or found.value is not None

    def _fail(self, number: int, why: str, **facts: Any) -> None:
        self._journal.end(number, "failed", failure=why, **facts)
        self._trials = self._journal.trials()
        first = self._trials[:SAME_FAILURES]
        alike = {(one.state, _kind_of(one.failure)) for one in first}
        if len(first) == SAME_FAILURES and alike == {("failed", _kind_of(why))}:
            self._problem = UserError(
                f"the first {SAME_FAILURES} trials failed in the same way: {why}",
                f"See it: dtrain status {self._study.trial(number).id}",
            )

    def _may_start(self) -> bool:
        """Whether one more trial may train now."""
        if self._asked_to_stop or self._problem or len(self._active) >= self._at_once:
            return False
        return not budget_spent(self._study, self._trials)

    def _start_next(self) -> bool:
        """Promote a trial that waits, or start a new one; False if there is none. A study whose trials all wait lets its best one finish."""
        if self._displaced:
            self._launch(self._displaced.pop(0))
            return True
        waiting = {
            one.number: max(one.rungs)
            for one in self._trials
            if one.goes_on and one.rungs and one.number not in self._active
        }
        costs = {one.number: {rung: self._cost(value) for rung, value in one.rungs.items()} for one in self._trials}
        chosen = self._ladder.promoted(costs, waiting) if self._tune.early_stop != PBT else self._of_generation(waiting)
        if chosen is None and len(self._trials) < self._most:
            self._new()
            return True
        stuck = chosen is None and not self._active and not any(one.state == "done" for one in self._trials)
        if stuck and self._tune.early_stop != PBT:
            chosen = min(waiting, key=lambda number: (-waiting[number], costs[number][waiting[number]]), default=None)
        if chosen is None:
            return False
        self._go_on(self._trials[chosen], waiting[chosen])
        return True

    def _go_on(self, trial: Trial, rung: int) -> None:
        """Have a trial that waits at a rung train up to the next one."""
        run = self._study.trial(trial.number)
        if not trial_run.is_made(run):
            self._fail(trial.number, "its run was removed")
            return
        taken = [one for one in trial.took_over if one.step == rung]
        try:
            trial_run.go_on_until(run, self._ladder.after(rung), taken[0].values if taken else {})
        except UsageError as error:
            self._fail(trial.number, f"recipe: {error.message}")
            return
        self._launch(trial.number)

    def _of_generation(self, waiting: Mapping[int, int]) -> int | None:
        """The next trial of a population to go on; None while others are still to come to the rung. Before the first one does, those that
        take over the state of a better one have it."""
        living = [one for one in self._trials if one.goes_on]
        rung = min(waiting.values(), default=0)
        if len(self._trials) < self._most or not waiting or any(rung not in one.rungs for one in living):
            return None
        if all(waiting.get(one.number) == rung for one in living):
            self._take_over(rung)
        return min(
            (number for number, at in waiting.items() if at == rung and self._trials[number].goes_on), default=None
        )

    def _take_over(self, rung: int) -> None:
        members = [
            Member(one.number, self._cost(one.rungs[rung]), one.values) for one in self._trials if rung in one.rungs
        ]
        for number, taken in take_overs(members, rung, self._space, self._tune, self._ladder.keep).items():
            if all(known.step != rung for known in self._trials[number].took_over):
                self._journal.take_over(number, taken)
            try:
                take_over.take_over(self._study.trial(number), self._study.trial(taken.trial), rung)
            except (CheckpointError, UsageError) as error:
                self._fail(number, f"the state of trial {taken.trial} cannot be taken over: {error.message}")
        self._trials = self._journal.trials()

    def _cost(self, value: float) -> float:
        return self._measure.cost(value) if self._measure else 0.0

    def _new(self) -> None:
        """Start one more trial."""
        if self._grid:
            values = dict(zip(self._space, self._grid[len(self._trials)], strict=True))
            trial = self._journal.add(values, self._space)
        else:
            trial = self._journal.propose(self._space, self._tune.sampler, self._tune.sampler_seed)
        self._trials = self._journal.trials()
        self._begin(trial)

    def _begin(self, trial: Trial) -> None:
        """Make the run of a trial and start it; values that the recipe cannot have together make a failed trial."""
        try:
            trial_run.make(self._study, trial.number, trial.values, self._ladder)
        except UsageError as error:
            self._fail(trial.number, f"recipe: {error.message}")
            return
        self._launch(trial.number)

    def _launch(self, number: int) -> None:
        run = self._study.trial(number)
        self._watch(number)
        if self._tune.packing:
            busy = [node for other, node in self._nodes.items() if other in self._active and other != number]
            self._nodes[number] = packing.start_on_a_node(self._study, run, busy)
        else:
            start.submit(run)

    def _watch(self, number: int) -> None:
        self._active[number] = Watcher(self._study.trial(number), partial(self._listen, number))

    def _listen(self, number: int, event: Event) -> None:
        """Find out that the metric is not there, as soon as a step and an evaluation have been reported."""
        if isinstance(event, Metrics | Evaluation) and self._measure and not self._measure.function:
            self._seen |= set(event.values)
            self._kinds.add(type(event))
            if len(self._kinds) == 2 and self._measure.name not in self._seen:
                self._problem = self._problem or _missing(self._measure.name, tuple(sorted(self._seen)))

    def _end(self) -> tuple[Exit, str]:
        """Say how the study has ended; a trial that waits at a rung will not go on."""
        if self._problem:
            raise self._problem
        if self._asked_to_stop:
            return Exit.RESUMABLE, "it was asked to stop"
        for one in [one for one in self._trials if one.goes_on]:
            self._journal.end(one.number, "stopped early", step=max(one.rungs, default=0))
        self._trials = self._journal.trials()
        done = sum(one.state == "done" for one in self._trials)
        if not any(one.state != "failed" for one in self._trials):
            why = (
                self._trials[-1].failure
                if self._trials
                else f"{budget_spent(self._study, [])} was over before the first"
            )
            return Exit.USER_CODE, f"no trial was trained to its end: {why}"
        over = budget_spent(self._study, self._trials)
        ended = f"{done} of {len(self._trials)} trials were trained to their end"
        return Exit.DONE, f"{ended}; {over} is spent" if over else ended


def _measure_of(study: StudyDir) -> tuning.Measure | None:
    """What trials are judged by, with the user's function, imported from the study's code."""
    measure = tuning.measure(study.tune)
    if measure is None or measure.of != tuning.FUNCTION:
        return measure
    if snapshot := code_snapshot.opened(study.code, study.job.folder):
        code.install(snapshot)
    sys.path[:0] = study.job.code_folders
    try:
        return dataclasses.replace(measure, function=entrypoint.load(measure.name, Path(study.job.folder)))
    except Exception as error:
        raise UserError(f"tune.metric: {measure.name} cannot be imported: {type(error).__name__}: {error}") from error


def _kind_of(failure: str) -> str:
    """What a failure has in common with others of its kind: its message without numbers and details."""
    return re.sub(r"[\d.]+", "0", failure.partition("(")[0])


def _missing(name: str, reported: tuple[str, ...]) -> UsageError:
    there = ", ".join(reported) or "nothing"
    return UsageError(f"tune.metric: no trial reports {name!r}: the first one reports {there}", "Name one of these.")


def _finite(value: float | None, measure: tuning.Measure | None) -> float:
    """A value for the journal, which has no place for none: the worst there is."""
    if value is not None and value == value:
        return value
    return float("inf") if measure and measure.mode == "min" else float("-inf")


def at_once(study: StudyDir) -> int:
    """How many trials train at the same time."""
    wanted, resources = study.tune.at_once, study.job.resources
    if wanted != "auto":
        return wanted
    if not study.tune.packing and not registry.cluster_of(study.job).same_machine:
        return IN_A_QUEUE
    nodes = study.tune.packing or 1
    if resources.device == "gpu":
        return nodes * max(1, len(gpu_leases.choice(resources.gpus)) // resources.workers)
    if resources.cpus_per_worker is None:
        return nodes
    return nodes * max(1, devices.cpus() // (resources.cpus_per_worker * resources.workers))
