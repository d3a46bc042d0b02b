"""The runs of a drill: the user's job at a bounded size, and a schedule of faults for each. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from dtrain.api.plan import LaunchPlan
from dtrain.common.errors import UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.drill.fault import BEFORE_STEPS, STEP, TYPES, Fault, Schedule, Side, Wanted, named, parsed
from dtrain.job.job import Checkpoint, Job, Notify

CHECKPOINTS = 8
"""Of each run."""
MEMORY_CHECKPOINTS = 2
"""Between two that are written to disk."""
EVALUATE_STEPS = 50
"""Most global batches of held-out data that are looked at."""
HANG_SECONDS = 5.0
"""After which a drill's runs take a silent rank for hanging, if the recipe does not say less."""
RESTARTS = 5
EARLIEST, LATEST = 0.35, 0.8
"""Shares of the steps between which a fault strikes."""
EARLIEST_REQUEST, LATEST_REQUEST = 0.1, 0.4
"""The same for what asks the run to leave, which it must do before it is done."""
OTHER_PHASES = (
    "kill@first-step", "kill@collective", "kill@evaluation", "kill@staging", "kill@writing", "kill@commit", "kill@import",
    "kill@rendezvous", "kill@reduced", "kill@in-memory", "supervisor@renamed", "stop@collective", "network-cut@collective", "kill+kill@build", "agent+kill@first-step",
)  # fmt: skip
"""Drilled after one of each fault; in the last two, the second fault strikes during the recovery from the first."""
FOR_RANDOM = ("kill", "kill", "kill", "segv", "stop", "hang", "agent", "zygote", "node", "supervisor")
"""Faults that training survives, the frequent ones more often."""


@dataclass(frozen=True)
class Case:
    """One run of a drill, or one that cannot be made."""

    name: str
    """As it was asked for."""
    schedule: Schedule = ()
    not_applicable: str = ""
    """Why this job has no such fault."""

    @property
    def text(self) -> str:
        """Format the case as `--only` takes it."""
        return named(self.schedule) or self.name


@dataclass(frozen=True)
class Span:
    """The range that a fault's place is drawn from."""

    launch: LaunchPlan
    steps: int
    seconds: float
    """Lifetime of the workers of the undisturbed run."""


def short(job: Job, steps: int, *, keep_all: bool) -> Job:
    """The job at the size of a drill, which checks that values that are not finite are found."""
    recovery = replace(
        job.recovery, hang_seconds=min(job.recovery.hang_seconds, HANG_SECONDS), restarts=max(job.recovery.restarts, RESTARTS),
        hold_seconds=0.0,
    )  # fmt: skip
    bounded = replace(job, name="undisturbed", recovery=recovery, notify=Notify(), track=())
    if job.kind == "script":
        return bounded
    train = replace(
        job.train, steps=steps, epochs=None, until=None, log_every=1, evaluate_every=max(1, steps // 2), stop_when=None, on_nonfinite="stop",
        evaluate_steps=min(job.train.evaluate_steps or EVALUATE_STEPS, EVALUATE_STEPS),
    )  # fmt: skip
    every = max(1, steps // CHECKPOINTS)
    memory = 0 if job.checkpoint.memory_every_steps == 0 else max(1, every // MEMORY_CHECKPOINTS)
    checkpoint = Checkpoint(
        every_steps=every,
        keep=steps if keep_all else 3,
        memory_every_steps=memory,
        memory_limit=job.checkpoint.memory_limit,
    )
    return replace(bounded, train=train, checkpoint=checkpoint)


def wanted(only: Sequence[str]) -> list[tuple[str, tuple[Wanted, ...]]]:
    """Parse the faults that were typed, all of them if none were; raises `UsageError`."""
    chosen = [text.strip() for given in only for text in given.split(",") if text.strip()]
    return [(text, parsed(text)) for text in chosen or (*TYPES, *OTHER_PHASES)]


def cases(asked: Sequence[tuple[str, tuple[Wanted, ...]]], span: Span, seed: int) -> list[Case]:
    """The runs; raises `UsageError` for a rank that is not there."""
    return [_case(name, faults, span, seed) for name, faults in asked]


def _case(name: str, faults: Sequence[Wanted], span: Span, seed: int) -> Case:
    drawn = random.Random(f"{seed}-{name}")
    for one in faults:
        if reason := _not_applicable(one, span.launch):
            return Case(name, not_applicable=reason)
    schedule = list[Fault]()
    for one in faults:
        schedule.append(_placed(one, span, drawn, schedule[-1].step if schedule else 0))
    return Case(name, tuple(schedule))


def _not_applicable(one: Wanted, launch: LaunchPlan) -> str:
    job, kind = launch.job, TYPES[one.name]
    if job.kind == "script":
        if kind.side is not Side.PROCESS or one.name == "exit":
            return "dtrain does not see the steps, data and checkpoints of a script: only its processes can be struck"
        if one.phase is not None:
            return "dtrain does not see the phases of a script"
    if one.seconds is not None and job.kind != "script":
        return "a task or a function is struck at a step or in a phase"
    if job.function and one.name == "spin":
        return "a function may compute between two steps for as long as it likes: dtrain takes only idle ranks of one for hanging"
    if launch.processes == 1 and kind.side is Side.NETWORK:
        return "the job has one process: nothing goes over the network"
    if launch.processes == 1 and one.phase == "collective":
        return "the job has one process: no rank waits for another"
    if kind.side is Side.CHECKPOINT and STEP in kind.phases and job.storage.url:
        return "the checkpoints are on remote storage, which the drill does not damage"
    return ""


def _placed(one: Wanted, span: Span, drawn: random.Random, after: int) -> Fault:
    processes = span.launch.processes
    if one.rank is not None and one.rank >= processes:
        raise UsageError(f"there is no rank {one.rank}: the job has {processes} processes")
    asks = TYPES[one.name].side is Side.SUPERVISOR
    begin, end = (EARLIEST_REQUEST, LATEST_REQUEST) if asks else (EARLIEST, LATEST)
    first, last = max(1, after + 1, round(begin * span.steps)), max(1, round(end * span.steps))
    step, rank = drawn.randint(min(first, last), last), drawn.randrange(processes)
    rank = rank if one.rank is None else one.rank
    if span.launch.job.kind == "script":
        seconds = one.seconds or round(max(0.02, drawn.uniform(EARLIEST, LATEST) * span.seconds), 2)
        return Fault(one.name, rank, seconds=seconds)
    phase = one.phase or TYPES[one.name].phases[0]
    if one.step is not None and one.step >= span.steps:
        raise UsageError(f"there is no step {one.step}: each run has {span.steps} steps", "See --steps.")
    if one.step is None and (phase in (*BEFORE_STEPS, "first-step", "evaluation", "memory")):
        step = 0
    return Fault(one.name, rank, phase, step if one.step is None else one.step)


def random_schedule(span: Span, mean_seconds: float, step_seconds: float, seed: int, number: int) -> Schedule:
    """Faults that strike at random, this far apart on average; at least one."""
    drawn = random.Random(f"{seed}-{number}")
    found, at = list[Fault](), 0.0
    while True:
        at += max(1.0, drawn.expovariate(1 / max(1e-9, mean_seconds / max(1e-6, step_seconds))))
        if at >= span.steps - 1:
            break
        found.append(_drawn_at(round(at), span, drawn))
    return tuple(found) or (_drawn_at(drawn.randrange(1, max(2, span.steps - 1)), span, drawn),)


def _drawn_at(step: int, span: Span, drawn: random.Random) -> Fault:
    name = drawn.choice(FOR_RANDOM)
    return Fault(name, drawn.randrange(span.launch.processes), TYPES[name].phases[0], step)
