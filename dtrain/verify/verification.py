"""`dtrain verify`: repeats the steps between two checkpoints of a run, and compares all saved tensors bit by bit."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.checkpoint import difference
from dtrain.checkpoint.difference import TensorDifference
from dtrain.checkpoint.factory import store_of
from dtrain.common.errors import DtrainError, Exit, UsageError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject
from dtrain.control import create, remove, start, state
from dtrain.control.overrides import Overrides
from dtrain.job.job import Checkpoint, Job, Notify, Storage
from dtrain.launch import planner, registry
from dtrain.record import code_snapshot, event_log, folder, gradient_ledger, history
from dtrain.record.event_log import EventLog
from dtrain.record.events import BadStep, CheckpointSaved, Event, Metrics, RunStarted, WorkersStarted
from dtrain.record.folder import RunDir
from dtrain.show import render
from dtrain.storage import run_sync

POLL_SECONDS = 2.0
COMPARED = "compared"
"""Folder in the run folder of the repetition: holds the checkpoint that its last one is compared with."""


@dataclass(frozen=True)
class GradientDifference:
    """The first step in which gradients of the run and of its repetition differ."""

    step: int
    """Counted from 0."""
    shards: tuple[int, ...]
    ranks: tuple[int, ...]
    """Ranks of the run that computed these shards."""
    nodes: tuple[str, ...]
    every: bool
    """Whether all shards of the step differ: then the reduction or the optimizer step of the step before gave other weights."""


@dataclass(frozen=True)
class Verification:
    """The result of a repetition."""

    run: str
    begin: int
    """Step of the checkpoint that the repetition started from; 0: it started from the beginning."""
    end: int
    """Step of the checkpoint that was compared."""
    tensor: TensorDifference | None
    """The first tensor of weights or optimizer state that differs."""
    gradient: GradientDifference | None
    """None if no checksum differs, or the run has none (`train.exact` writes them)."""
    checked_gradients: int
    """Checksums that were compared."""
    repetition: str = ""
    """Id of the run that repeated the steps, if it is kept."""

    @property
    def equal(self) -> bool:
        """Whether all compared tensors and checksums are equal."""
        return self.tensor is None and self.gradient is None

    def text(self) -> str:
        """Format the result for reading."""
        steps = f"steps {self.begin + 1} to {self.end}"
        if self.equal:
            checked = (
                f"; so are the gradients of {render.counted(self.checked_gradients, 'shard')}"
                if self.checked_gradients
                else ""
            )
            return f"{self.run}: {steps} were trained again: weights and optimizer are equal to the last bit{checked}"
        lines = [f"{self.run}: {steps} were trained again, and the result DIFFERS"]
        if self.tensor:
            lines.append(f"  {self.tensor.name} {self.tensor.text}")
        if found := self.gradient:
            if found.every:
                lines.append(
                    f"  all gradients differ from step {found.step + 1} on, and none before: step {found.step} was summed up, or "
                    "its optimizer step done, differently"
                )
            else:
                who = f"{render.ranks(found.ranks)} ({', '.join(found.nodes)})"
                what = "shard" if len(found.shards) == 1 else "shards"
                lines.append(
                    f"  the first other gradient: step {found.step + 1}, {what} {', '.join(map(str, found.shards))}, which {who} computed"
                )
        elif not self.checked_gradients:
            lines.append("  which step and rank it was is not known: only train.exact keeps checksums of gradients")
        return "\n".join([*lines, f"  the repetition is kept: {self.repetition}"])

    def public(self) -> JsonObject:
        """Convert to plain data for `--json`."""
        tensor, gradient = self.tensor, self.gradient
        return {
            "run": self.run, "begin": self.begin, "end": self.end, "equal": self.equal, "checked_gradients": self.checked_gradients,
            "tensor": tensor and {"name": tensor.name, "text": tensor.text},
            "gradient": gradient and {
                "step": gradient.step, "shards": gradient.shards, "ranks": gradient.ranks, "nodes": gradient.nodes,
                "every": gradient.every,
            },
            "repetition": self.repetition,
        }  # fmt: skip


def verify(run: RunDir, given: Overrides, step: int | None, *, quiet: bool) -> Verification:
    """Repeat the steps up to the newest checkpoint, or to that of a step, from the one before it. Raises `UsageError` if there is
    nothing to repeat, `DtrainError` if the repetition fails."""
    job = run.job()
    if job.kind == "script":
        raise UsageError(f"{run.id} ran a script, whose steps dtrain cannot repeat", "Verify a task or a function.")
    store = store_of(run, job)
    steps = sorted(store.steps())
    saved, manifest = store.verified(step)
    end = manifest.step
    begin = max((one for one in steps if one < end), default=0)
    code = _code_of(run, end)
    with code_snapshot.used(code, job.folder):
        again = _repetition(run, job, given, end)
    if begin:
        beginning = store.verified(begin)[0]
        _link(beginning, again.checkpoints / beginning.name.partition("-attempt-")[0])
    compared = again.path / COMPARED
    _link(saved, compared)
    if code.exists():
        shutil.copyfile(code, again.code)
    _pass_over(run, again)
    what = f"training steps {begin + 1} to {end} again on {render.counted(again.job().resources.workers, 'worker')}"
    print(f"{run.id}: {what} ({again.id})", file=sys.stderr, flush=True)
    _train(again, quiet=quiet)
    there = store_of(again, again.job()).verified(end)[0]
    tensor = difference.first_difference(compared, there)
    gradient, checked = _gradients(run, again, begin, end)
    equal = tensor is None and gradient is None
    if equal:
        remove.remove(remove.planned(again), checkpoints_only=False)
    return Verification(run.id, begin, end, tensor, gradient, checked, "" if equal else again.id)


def _repetition(run: RunDir, job: Job, given: Overrides, end: int) -> RunDir:
    """A new run that ends at step `end`, without evaluations, trackers and notifications."""
    chosen = {".".join(path) for path, _, _ in given}
    if "cluster" not in chosen:
        given = [(("cluster",), registry.default("cluster"), "dtrain verify"), *given]
        if "resources.nodes" not in chosen:
            given = [(("resources", "nodes"), 1, "dtrain verify"), *given]
    wanted = create.overridden(run, job, given)
    if not job.train.exact:
        _refuse_another_size(run, wanted, end)
    short = replace(
        wanted, name=f"verify-{job.name}"[:60], train=replace(wanted.train, until=end, evaluate_every=None, stop_when=None),
        checkpoint=Checkpoint(every_steps=end, keep=1), storage=Storage(), notify=Notify(), track=(), init_from=job.init_from,
        resources=replace(wanted.resources, min_workers=None),
    )  # fmt: skip
    return folder.create(run.path.parent, short)


def _refuse_another_size(run: RunDir, wanted: Job, end: int) -> None:
    """Refuse another number of workers, which computes other bits without `train.exact`."""
    happened = event_log.read(run.events)
    saved = [event for event in happened if isinstance(event, CheckpointSaved) and event.step == end]
    started = [
        event for event in happened
        if isinstance(event, WorkersStarted) and saved and event.attempt == saved[-1].attempt
    ]  # fmt: skip
    processes = sum(len(event.pids) for event in started)
    now = planner.make(wanted).processes
    if processes and processes != now:
        raise UsageError(
            f"{run.id} trained up to step {end} in {render.counted(processes, 'process')}, and would be repeated in {now}: without "
            "train.exact, other numbers of workers give other bits",
            f"Repeat it on as many: --workers {processes}",
        )


def _link(checkpoint: Path, target: Path) -> None:
    """Give the repetition a checkpoint of the run, by hard links if the file system has them: the run may delete it meanwhile."""

    def link(source: str, place: str) -> None:
        try:
            os.link(source, place)
        except OSError:
            shutil.copy2(source, place)

    shutil.copytree(checkpoint, target, copy_function=link)


def _code_of(run: RunDir, end: int) -> Path:
    """The snapshot of the code that trained up to step `end`."""
    used = trained = ""
    for event in event_log.read(run.events):
        if isinstance(event, RunStarted):
            used = event.code
        elif isinstance(event, CheckpointSaved) and event.step == end:
            trained = used
    former = run.former_code(trained)
    return former if former.exists() else run.code


def _pass_over(run: RunDir, again: RunDir) -> None:
    """Have the repetition leave out the steps that the run went on without after it was rolled back."""
    log = EventLog(again.events)
    for event in event_log.read(run.events):
        if isinstance(event, BadStep) and event.answer == "rollback":
            log.add(event)
    log.close()


def _train(again: RunDir, *, quiet: bool) -> None:
    """Run the repetition to its end; raises `DtrainError` if it fails."""
    shown = sys.stderr.isatty() and not quiet
    until = again.job().train.until

    def hear(event: Event) -> None:
        if shown and isinstance(event, Metrics):
            print(f"\r\x1b[Kstep {event.step} of {until}", end="", file=sys.stderr, flush=True)

    code = start.run_to_end(again, on_event=hear)
    print("\r\x1b[K" if shown else "", end="", file=sys.stderr, flush=True)
    if code != Exit.DONE:
        why = render.ended_why(state.state_of(again))
        error = DtrainError(f"the repetition did not come to its end: {why}", f"See it: dtrain report {again.id}")
        error.exit_code = Exit(code)
        raise error


def _gradients(run: RunDir, again: RunDir, begin: int, end: int) -> tuple[GradientDifference | None, int]:
    """The first step whose gradients differ, and how many checksums were compared."""
    happened = event_log.read(run.events)
    before = gradient_ledger.read(run, history.attempt_starts(happened))
    now = gradient_ledger.read(again, history.attempt_starts(event_log.read(again.events)))
    both = {key for key in before.keys() & now.keys() if begin <= key[0] < end}
    wrong = sorted(key for key in both if before[key].checksum != now[key].checksum)
    if not wrong:
        return None, len(both)
    first = wrong[0][0]
    shards = tuple(shard for step, shard in wrong if step == first)
    computed = [before[first, shard] for shard in shards]
    every = len(shards) == sum(step == first for step, _ in both) > 1
    return (
        GradientDifference(
            first,
            shards,
            tuple(sorted({one.rank for one in computed})),
            _nodes(happened, computed),
            every and first > begin,
        ),
        len(both),
    )


def _nodes(happened: Sequence[Event], computed: Sequence[gradient_ledger.ShardGradient]) -> tuple[str, ...]:
    """The nodes that these gradients were computed on."""
    started = [event for event in happened if isinstance(event, WorkersStarted)]
    where = {(event.attempt, int(rank)): event.node for event in started for rank in event.pids}
    return tuple(sorted({where.get((one.attempt, one.rank), "?") for one in computed}))


def followed(run: RunDir, given: Overrides, every: int, *, quiet: bool) -> Iterator[Verification]:
    """Verify the newest checkpoint again and again while a run goes on, each at least so many steps after the one before it, and
    the last one of the run."""
    last = 0
    while True:
        goes_on = state.goes_on(run)
        run_sync.refresh(run)
        newest = max(store_of(run, run.job()).steps(), default=0)
        if newest > last and (newest >= last + every or not goes_on):
            last = newest
            yield verify(run, given, newest, quiet=quiet)
        elif not goes_on:
            return
        else:
            time.sleep(POLL_SECONDS)
