"""Renders events and states as text for people; used by the live view, plain output, status and summaries. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dtrain.api import phases
from dtrain.common.ranks import ranks as ranks
from dtrain.record import events
from dtrain.record.events import Event
from dtrain.record.folder import Submitted
from dtrain.record.status import RunState, unlogged

WORTH_SAYING = 0.05
"""Share of the time that the training waits for data."""


def seconds(value: float) -> str:
    """A duration in two units at most: `0.42 s`, `12 s`, `3 min 20 s`, `5 h 3 min`, `2 d 4 h`."""
    if value < 9.95:
        return f"{value:.2g} s" if value >= 0.01 else "0 s"
    whole = round(value)
    for size, name, lower, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // lower
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def saving(written: float, stall: float) -> str:
    """Format the cost of a checkpoint."""
    stood = f"{stall * 1000:.2g} ms" if stall < 0.0995 else seconds(stall)
    return f"on disk after {seconds(written)}, training stood still for {stood}"


def size(count: float) -> str:
    """A number of bytes: `512 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 worker`, `2 workers`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def numbers(values: Mapping[str, float]) -> str:
    """Named numbers: `loss 0.123, accuracy 0.981`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def line(event: Event, state: RunState) -> str | None:
    """Format an event in one line, given the state after it; None for an event that people need not see."""
    handler = LINES.get(type(event))
    return handler(event, state) if handler else None


def _metrics(event: events.Metrics, state: RunState) -> str:
    speed = f"  {event.samples_per_second:,.0f} samples/s" if event.samples_per_second else ""
    return f"step {event.step}/{state.total_steps}  {numbers(event.values)}{speed}{data_wait(event.data_wait)}"


def data_wait(share: float | None) -> str:
    """How much of its time the training waits for data, if it is much."""
    return f"  {share:.0%} waiting for data" if share and share >= WORTH_SAYING else ""


def _evaluation(event: events.Evaluation, state: RunState) -> str:
    return f"step {event.step}/{state.total_steps}  held-out: {numbers(event.values)}"


def _attempt(event: events.AttemptStarted, state: RunState) -> str:
    checkpoint = "in-memory checkpoint" if event.memory else "checkpoint"
    start = f"from the {checkpoint} of step {event.step}" if event.checkpoint or event.memory else "from the beginning"
    return f"attempt {event.attempt} {start}, {counted(event.workers, 'worker')} on {', '.join(event.nodes)}"


def _checkpoint(event: events.CheckpointSaved, state: RunState) -> str:
    return f"step {event.step}  checkpoint saved ({size(event.bytes)}, {saving(event.seconds, event.stall_seconds)})"


def _checkpoint_failed(event: events.CheckpointFailed, state: RunState) -> str:
    return f"WARNING: the checkpoint of step {event.step} failed: {event.error}; training goes on"


def _quarantined(event: events.CheckpointQuarantined, state: RunState) -> str:
    return f"WARNING: a damaged checkpoint was set aside as {event.folder}: {event.problem}"


def _taken_over(event: events.StateTakenOver, state: RunState) -> str:
    return f"step {event.step}  goes on from the state of {event.run}"


def _warning(event: events.UserWarned, state: RunState) -> str:
    return f"WARNING: {event.text}"


def _bad_step(event: events.BadStep, state: RunState) -> str:
    if event.answer == events.RESCALE:
        return f"step {event.step}: {event.why}; it is left out, and the loss is scaled less"
    ends = {
        "skip": "the optimizer step is left out",
        "rollback": "back to the last checkpoint, to go on without this step",
    }
    return f"WARNING: step {event.step}: {event.why}" + (f"; {ends[event.answer]}" if event.answer in ends else "")


def _log_shortened(event: events.LogShortened, state: RunState) -> str:
    if event.problem:
        return f"WARNING: the log of rank {event.rank} grows beyond logs.keep, since it cannot be shortened: {event.problem}"
    return f"the log of rank {event.rank} is beyond logs.keep: {size(event.removed)} of its middle were removed"


def _storage_failed(event: events.StorageFailed, state: RunState) -> str:
    return f"WARNING: {event.error}; events and logs are kept here meanwhile"


def _storage_works(event: events.StorageWorks, state: RunState) -> str:
    return f"{event.place} works again"


def _tracker_failed(event: events.TrackerFailed, state: RunState) -> str:
    if event.ended:
        return f"WARNING: {unlogged(event)}"
    return f"WARNING: tracker {event.tracker}: {event.error}; the run goes on, and what is missing is logged later"


def _tracker_works(event: events.TrackerWorks, state: RunState) -> str:
    return f"tracker {event.tracker} works again and has caught up"


def _hang(event: events.HangDetected, state: RunState) -> str:
    return f"hang: nothing moves (rank {event.rank}); writing the stacks of all ranks to their logs"


def _debugger_stopped(event: events.DebuggerStopped, state: RunState) -> str:
    what = {"breakpoint": f"waits at breakpoint(), {event.where}", "exception": f"is held after {event.where}"}
    text = f"rank {event.rank} {what.get(event.reason, f'is stopped in a debugger in {event.where}')}"
    if event.seconds is None:
        return text
    return f"{text}, for {seconds(event.seconds)}: dtrain debug {state.run} --rank {event.rank}"


def _debugger_left(event: events.DebuggerLeft, state: RunState) -> str:
    return f"rank {event.rank} goes on after {seconds(event.seconds)}"


def _straggler(event: events.StragglerFound, state: RunState) -> str:
    node = f" ({event.node})" if event.node else ""
    return f"WARNING: the others wait for rank {event.rank}{node}: it {slowness(event)}"


def slowness(event: events.StragglerFound) -> str:
    """Format what a straggler spends its time on."""
    what = {phases.DATA: "waits for data", phases.WORK: "computes", phases.SAVE: "stands still for checkpoints"}
    does = what.get(event.phase, f"computes in the {event.phase} pass")
    return f"{does} {milliseconds(event.seconds)} a step, the usual rank {milliseconds(event.usual_seconds)}"


def _straggler_over(event: events.StragglerOver, state: RunState) -> str:
    return f"nobody waits for rank {event.rank} any more; it cost {seconds(event.cost_seconds)}"


def milliseconds(value: float) -> str:
    """A duration of a part of a step."""
    return f"{value * 1000:.3g} ms" if value < 1 else seconds(value)


def _nodes_awaited(event: events.NodesAwaited, state: RunState) -> str:
    return f"waiting for {event.why}" if event.why else "the wait is over"


def _node_avoided(event: events.NodeAvoided, state: RunState) -> str:
    return f"{event.node} is avoided for {seconds(event.until - event.time)}: {'; '.join(event.evidence)}"


def _node_lost(event: events.NodeLost, state: RunState) -> str:
    return f"node {event.node} lost: {event.reason}"


def _stopping(event: events.StopRequested, state: RunState) -> str:
    return f"{event.why}: " + ("stopping at once" if event.now else "saving and stopping (again: at once)")


def _requeued(event: events.Requeued, state: RunState) -> str:
    return f"queued again: {event.words}"


def _resize(event: events.ResizeRequested, state: RunState) -> str:
    return f"{event.why}: saving, to go on with other nodes"


def _drain(event: events.DrainAgreed, state: RunState) -> str:
    return f"all ranks leave at step {event.step}"


def _failure(event: events.FailureOccurred, state: RunState) -> str:
    return "; ".join([f"FAILURE {failure(event)}", *other_ranks(event)])


def other_ranks(event: events.FailureOccurred) -> list[str]:
    """Format the errors of other ranks, equal errors once: `ranks 1 to 7: the same`."""
    same = [f"{ranks(event.same)}: the same"] if event.same else []
    return [*same, *(f"{ranks(numbers)}: {text}" for text, numbers in event.others.items())]


def evidence(event: events.FailureOccurred) -> str:
    """Format what the failing rank left behind: the end of its log and the traceback."""
    log = f"the last lines of {_whose_log(event)}:\n" + indented(event.log_tail) if event.log_tail else ""
    return "\n\n".join(part for part in (log, event.traceback.rstrip()) if part)


def _whose_log(event: events.FailureOccurred) -> str:
    return f"rank {event.rank}'s log (dtrain logs --rank {event.rank})"


def indented(text: str) -> str:
    """Lines of another program's, set off from dtrain's own."""
    return "\n".join(f"  | {line}" for line in text.splitlines())


def ended_why(state: RunState) -> str:
    """Why a run that is not done ended: its last failure, or else the reason that was logged."""
    return failure(state.failures[-1]) if state.failures else state.reason or state.outcome


KIND_LABELS = {"chance": "transient error", "cascade": "lost another worker"}
"""Labels of failure classes whose names say little."""


def failure(event: events.FailureOccurred) -> str:
    """Kind, place and message of a failure."""
    rank = "" if event.rank is None else f"rank {event.rank} "
    step = f" at step {event.step}" if event.step is not None else ""
    where = f" ({event.where})" if event.where else ""
    message = event.message if event.kind in ("node lost", "hang") else f"{rank}{event.message}"
    return f"{KIND_LABELS.get(event.kind, event.kind)}: {message}{step}{where}"


def _decision(event: events.DecisionMade, state: RunState) -> str:
    if not event.retry:
        return f"not tried again: {event.reason}"
    wait = f" after {seconds(event.delay_seconds)}" if event.delay_seconds else ""
    return f"starting again{wait}: {event.reason}"


LINES: dict[type[Event], Callable[[Any, RunState], str]] = {
    events.AttemptStarted: _attempt,
    events.Metrics: _metrics,
    events.Evaluation: _evaluation,
    events.CheckpointSaved: _checkpoint,
    events.CheckpointFailed: _checkpoint_failed,
    events.CheckpointQuarantined: _quarantined,
    events.StateTakenOver: _taken_over,
    events.UserWarned: _warning,
    events.BadStep: _bad_step,
    events.LogShortened: _log_shortened,
    events.StorageFailed: _storage_failed,
    events.StorageWorks: _storage_works,
    events.TrackerFailed: _tracker_failed,
    events.TrackerWorks: _tracker_works,
    events.HangDetected: _hang,
    events.DebuggerStopped: _debugger_stopped,
    events.DebuggerLeft: _debugger_left,
    events.StragglerFound: _straggler,
    events.StragglerOver: _straggler_over,
    events.NodesAwaited: _nodes_awaited,
    events.NodeAvoided: _node_avoided,
    events.NodeLost: _node_lost,
    events.StopRequested: _stopping,
    events.Requeued: _requeued,
    events.ResizeRequested: _resize,
    events.DrainAgreed: _drain,
    events.FailureOccurred: _failure,
    events.DecisionMade: _decision,
}


def clock(event: Event) -> str:
    """Local time of an event."""
    return clock_time(event.time)


def clock_time(seconds_since_1970: float) -> str:
    """Format the local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(seconds_since_1970))


MOST_GROUPS_SHOWN = 4


def workers(state: RunState) -> str:
    """Format the steps that the workers are at, equal ones once, or their range if there are many."""
    if not state.pids:
        return "waiting for nodes" if not state.hosts else "starting"
    groups: dict[str, list[int]] = {}
    for rank in sorted(state.pids, key=int):
        at = f"at step {state.steps[rank]}" if rank in state.steps else state.phase
        groups.setdefault(at, []).append(int(rank))
    if len(groups) > MOST_GROUPS_SHOWN:
        text = f"{len(state.pids)} at steps {min(state.steps.values())} to {max(state.steps.values())}"
    else:
        text = "; ".join(f"{ranks(numbers)} {at}" for at, numbers in groups.items())
    text += f"  (the others wait for {ranks(sorted(state.stragglers))})" if state.stragglers else ""
    return f"{text}  ({ranks(sorted(state.debugged))} in a debugger)" if state.debugged else text


def eta(state: RunState, now: float) -> str:
    """Time to the end at the speed of this attempt so far."""
    done = state.step - state.first_step
    if not state.total_steps or done <= 0 or not state.trained_since:
        return "-"
    return seconds((now - state.trained_since) / done * (state.total_steps - state.step))


def submitted(run_id: str, there: Submitted) -> str:
    """Where a run was submitted to, and how to watch and stop it."""
    return (
        f"submitted {run_id} ({there.cluster} {there.reference})\n"
        f"  watch it: dtrain attach {run_id}    dtrain logs -f {run_id}    stop it: dtrain stop {run_id}"
    )


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells with the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def fitted(lines: Sequence[Sequence[str]], width: int | None, spare: Sequence[str]) -> list[list[str]]:
    """Choose the columns that fit a width. Those whose heads are in `spare` are left out first, in that order; the last one is cut."""
    kept = list(range(len(lines[0])))
    for head in spare:
        if width is None or sum(max(len(line[one]) for line in lines) + 2 for one in kept) - 2 <= width:
            break
        kept.remove(list(lines[0]).index(head))
    rows = [[line[one] for one in kept] for line in lines]
    if len(kept) == 1 and width is not None:
        return [[cell if len(cell) <= width else f"{cell[: width - 1]}…"] for (cell,) in rows]
    return rows


def tags(found: Mapping[str, str]) -> str:
    """Format tags: `dataset=v2 debug=1`."""
    return " ".join(f"{key}={value}" for key, value in found.items())


def ago(elapsed: float) -> str:
    """Format a time in the past in a few letters: `12s ago`, `5m ago`, `3h ago`, `2d ago`."""
    whole = max(0, round(elapsed))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit} ago"
    return f"{whole}s ago"
