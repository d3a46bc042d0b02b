"""Performs one call of `dtrain drill`: from its options to its result, within its budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.api.plan import LaunchPlan
from dtrain.common.durations import seconds_of
from dtrain.common.errors import Exit, UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject
from dtrain.control.overrides import Overrides
from dtrain.drill import cases
from dtrain.drill.cases import Case, Span
from dtrain.drill.checks import History
from dtrain.drill.fault import PHASES, TYPES, Schedule
from dtrain.drill.result import DrillResult, Row
from dtrain.drill.runs import Drill, Interrupted
from dtrain.drill.shrink import shrunk
from dtrain.launch import planner, recipe
from dtrain.record.events import Metrics
from dtrain.show import render


@dataclass(frozen=True)
class Asked:
    """The options of one drill."""

    recipe: Path
    steps: int
    budget: str
    only: tuple[str, ...]
    seed: int
    random: str | None
    rounds: int
    explain: bool
    keep: bool
    html: Path | None


class Session:
    """The runs of one call; everything that can be wrong with the options is found when it is made."""

    def __init__(self, asked: Asked, given: Overrides, runs: Path, *, quiet: bool) -> None:
        self._asked = asked
        self._wanted = cases.wanted(asked.only)
        self._budget = _duration("--budget", asked.budget)
        self._mean = _duration("--random", asked.random) if asked.random else None
        if asked.random and asked.only:
            raise UsageError("--random draws the faults itself: leave out --only")
        if asked.html and not asked.html.absolute().parent.is_dir():
            raise UsageError(f"cannot write {asked.html}: there is no folder {asked.html.absolute().parent}")
        loaded = recipe.load(asked.recipe, given, runs=runs)
        if self._mean and loaded.kind == "script":
            raise UsageError("--random strikes at steps, which dtrain does not see in a script: use --only")
        self.options = _typed(given)
        self._job = cases.short(loaded, asked.steps, keep_all=asked.explain)
        self._launch: LaunchPlan = planner.make(self._job)
        # A mistake in a step or a rank is found before anything runs.
        planned = cases.cases(self._wanted, Span(self._launch, asked.steps, 1.0), asked.seed)
        self._able = sum(not case.not_applicable for case in planned)
        folder = runs.absolute() / f"drill-{loaded.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._drill = Drill(self._job, asked.recipe, folder, keep=asked.keep, explain=asked.explain, quiet=quiet)
        self._began = time.monotonic()
        self._rows: list[Row] = []
        self._notes: list[str] = []

    def run(self) -> DrillResult:
        """Do all runs, or those until a Ctrl-C."""
        asked, drill = self._asked, self._drill
        drill.say(self._announcement())
        undisturbed, interrupted = Row(Case("undisturbed")), False
        try:
            undisturbed, history = drill.undisturbed()
            if undisturbed.exit_code == Exit.DONE:
                drill.say(f"undisturbed: {undisturbed.end}, {render.seconds(undisturbed.seconds)}")
                self._all(history)
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
        drill.forget()
        return DrillResult(
            str(asked.recipe), self._description(), asked.seed, asked.steps, undisturbed, tuple(self._rows), str(drill.folder),
            tuple(self._notes), interrupted,
        )  # fmt: skip

    def exit_code(self, result: DrillResult) -> int:
        """1 if a promise was broken, 3 if nothing was drilled; the undisturbed run's own if that failed."""
        if result.interrupted:
            return int(Exit.INTERRUPTED)
        if result.undisturbed.exit_code:
            return max(1, result.undisturbed.exit_code)
        if result.broken:
            return 1
        return int(Exit.DONE if result.drilled else Exit.GAVE_UP)

    def _all(self, undisturbed: History) -> None:
        span = Span(self._launch, self._asked.steps, undisturbed.workers_seconds)
        if self._mean:
            self._random(span, _step_seconds(undisturbed))
            return
        chosen = cases.cases(self._wanted, span, self._asked.seed)
        able = [case for case in chosen if not case.not_applicable]
        for case in chosen:
            if case.not_applicable:
                self._rows.append(Row(case, struck=False))
            elif self._is_over():
                self._rows.append(Row(case, struck=False, problem=f"the budget of {self._asked.budget} is spent"))
            else:
                title = f"[{able.index(case) + 1}/{len(able)}] {case.text}"
                self._rows.append(self._drill.run(case, title))

    def _random(self, span: Span, step_seconds: float) -> None:
        """Rounds of faults at random; the first schedule that breaks a promise is shrunk."""
        assert self._mean is not None
        for number in range(self._asked.rounds):
            schedule = cases.random_schedule(span, self._mean, step_seconds, self._asked.seed, number)
            case = Case(f"round {number + 1}", schedule)
            if self._is_over():
                self._rows.append(Row(case, struck=False, problem=f"the budget of {self._asked.budget} is spent"))
                continue
            row = self._drill.run(case, f"[{number + 1}/{self._asked.rounds}] {case.text}")
            self._rows.append(row)
            if row.broken and len(schedule) > 1:
                self._shrink(case, row)
                return

    def _shrink(self, case: Case, row: Row) -> None:
        self._drill.say("a promise broke: looking for the fewest faults that break one")
        broken = {case.schedule: row}

        def breaks(schedule: Schedule) -> bool:
            one = self._drill.run(Case("shrunk", schedule), f"with {len(schedule)} of {len(case.schedule)} faults")
            broken[schedule] = one
            return bool(one.broken)

        least = shrunk(case.schedule, breaks, self._is_over)
        if least != case.schedule:
            self._rows.append(replace(broken[least], case=Case("shrunk", least)))
            self._notes.append(f"the fewest faults that break a promise: {self._rows[-1].case.text}")

    def _is_over(self) -> bool:
        return time.monotonic() - self._began > self._budget

    def _description(self) -> str:
        job, launch = self._job, self._launch
        where = f"{job.strategy.name} on {render.counted(launch.workers, 'worker')}, cluster {job.cluster.name}"
        size = (
            "its own length"
            if job.kind == "script"
            else f"{self._asked.steps} steps each, a checkpoint every {job.checkpoint.steps}"
        )
        return f"{job.target}, {where}, {size}, hang_seconds {job.recovery.hang_seconds:g}"

    def _announcement(self) -> str:
        count = self._asked.rounds if self._mean else self._able
        return (
            f"drill of {self._description()}\n"
            f"one undisturbed run and {render.counted(count, 'run')} with faults, one after another, for {self._asked.budget} at most"
            f"; the runs are in {self._drill.folder}"
        )


def listed_as_json() -> JsonObject:
    """Return every fault and every phase as data."""
    return {"faults": {name: kind.text for name, kind in TYPES.items()}, "phases": dict(PHASES)}


def listed() -> str:
    """Every fault and every phase."""
    width = max(map(len, TYPES)) + 2
    faults = [f"{name:<{width}}{kind.text}" for name, kind in TYPES.items()]
    phases = [f"{name:<{width}}{text}" for name, text in PHASES.items()]
    return "\n".join([*faults, "", "phases (kill@evaluation):", *phases])


def _typed(given: Overrides) -> Sequence[str]:
    """The options that override the recipe, as words of a command."""
    words = list[str]()
    for source in dict.fromkeys(source for _, _, source in given):
        words += source.split(" ", 1)
    return words


def _step_seconds(history: History) -> float:
    """Of the undisturbed run, by its metrics."""
    times = [event.time for event in history.of(Metrics)]
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0


def _duration(option: str, text: str) -> float:
    seconds = seconds_of(text)
    if seconds is None:
        raise UsageError(f"{option}: '{text}' is no time", "Write 90s, 10m or 2h.")
    return seconds
