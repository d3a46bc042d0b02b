"""The text of `status`, of the end of a run, and of `ps`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence

from dtrain.cli import screen
from dtrain.common.errors import Exit
from dtrain.control.state import RunRow, named
from dtrain.record.folder import RunDir
from dtrain.record.goodput import SHARES
from dtrain.record.status import RunState
from dtrain.show import render
from dtrain.show.render import clock, columns, counted, eta, failure, milliseconds, numbers, seconds, workers

FAILURES_SHOWN = 5
STEPS_SHOWN = 10
"""Of those that were left out."""
STATE_STYLES = {"done": "green", "running": "cyan"}
STATE_STYLES |= dict.fromkeys(("failed", "gave up", "lost", "unreadable"), "red")
STATE_STYLES |= dict.fromkeys(("recovering", "stopped", "stopping"), "yellow")
SPARE = ("restarts", "cluster", "workers", "strategy", "started", "changed", "loss", "step", "state")
"""Columns that a narrow screen is without, the first first."""
LABEL_WIDTH = 13
COLUMNS = ("run", "state", "step", "loss", "strategy", "cluster", "workers", "restarts", "started", "changed")


def summary(state: RunState, run: RunDir) -> str:
    """Format what happened, once a run is over."""
    code = Exit(state.exit_code or 0)
    took = f"in {seconds(state.report.get('total', 0.0))}" if state.report else ""
    lines = [screen.folded(f"{run.id}: {state.outcome} {took} - {state.reason}".replace("  ", " "), 2)]
    if state.total_steps:
        lines.append(_labelled("steps", f"{state.step} of {state.total_steps}", numbers(state.metrics), _speed(state)))
    if state.evaluation:
        lines.append(_labelled("held-out", numbers(state.evaluation)))
    if state.saved_step is not None:
        lines.append(_labelled("checkpoint", f"step {state.saved_step}, weights digest {state.weights[:16]}"))
    for event in state.failures[-FAILURES_SHOWN:]:
        lines.append(_labelled("failure", f"{clock(event)} attempt {event.attempt}: {failure(event)}"))
        lines += [_labelled("", told) for told in render.other_ranks(event)]
    if len(state.failures) > FAILURES_SHOWN:
        lines.append(_labelled("", f"and {len(state.failures) - FAILURES_SHOWN} before: {run.events}"))
    if state.left_out:
        lines.append(_labelled("left out", _steps(state.left_out), f"with their samples: dtrain audit {run.id}"))
    if state.report.get("total", 0.0) > 0:
        lines.append(_labelled("time", account(state.report)))
    if state.data_wait >= render.WORTH_SAYING:
        workers_each = counted(state.data_workers, "data worker")
        lines.append(
            _labelled(
                "data", f"{state.data_wait:.0%} of the training time waited for it, with {workers_each} (data.workers)"
            )
        )
    lines += [_labelled("warning", warning) for warning in state.warnings]
    if code in (Exit.USER_CODE, Exit.GAVE_UP) and state.failures and (left := render.evidence(state.failures[-1])):
        lines += ["", left, ""]
    lines += _named(run)
    lines.append(_labelled("folder", shlex.quote(str(run.path)) + (f", {state.storage}" if state.storage else "")))
    if code is not Exit.DONE:
        mended = " (when the cause is mended)" if code not in (Exit.RESUMABLE, Exit.INTERRUPTED) else ""
        lines.append(f"  go on with: dtrain resume {shlex.quote(str(run.path))}{mended}")
    return "\n".join(lines)


def status(state: RunState, run: RunDir) -> str:
    """A run in full, while it goes on or after its end."""
    if state.exit_code is not None:
        return summary(state, run)
    now = time.time()
    lines = [screen.folded(f"{run.id}: {state.outcome}" + (f" - {state.reason}" if state.reason else ""), 2)]
    runs = f"{state.target}, {state.strategy} on {counted(state.workers, 'worker')}, {state.cluster}"
    lines.append(_labelled("runs", runs))
    if state.total_steps:
        speed = f"{state.samples_per_second:,.0f} samples/s" if state.samples_per_second else ""
        speed += render.data_wait(state.data_wait)
        step = f"{state.step} of {state.total_steps}"
        lines.append(_labelled("step", step, numbers(state.metrics), speed))
    if state.began and state.phase != "lost":
        left = f"about {eta(state, now)} to go" if eta(state, now) != "-" else ""
        lines.append(_labelled("time", f"{seconds(now - state.began)} elapsed", left))
    if state.evaluation:
        lines.append(_labelled("held-out", numbers(state.evaluation)))
    if state.pids and state.phase != "lost":
        lines.append(_labelled("workers", workers(state)))
    if state.saved_step is not None:
        lines.append(_labelled("checkpoint", f"step {state.saved_step}", render.saving(*state.saving)))
    if state.memory_every:
        often = f"every {counted(state.memory_every, 'step')}" if state.memory_every > 1 else "every step"
        lines.append(_labelled("in memory", often, f"{milliseconds(state.memory_seconds)} each"))
    lines += [_labelled("failure", f"{clock(event)} {failure(event)}") for event in state.failures[-FAILURES_SHOWN:]]
    lines += [_labelled("warning", warning) for warning in state.warnings]
    lines += _named(run)
    lines.append(_labelled("folder", str(run.path), state.storage))
    if state.phase == "lost":
        lines.append(f"  go on with: dtrain resume {run.id}")
    return "\n".join(lines)


def account(report: Mapping[str, float]) -> str:
    """The account of a run in one line: its goodput, and the seconds of each kind that took any."""
    times = {name: value for name, value in report.items() if name not in SHARES and value >= 0.01}
    parts = ", ".join(f"{name.replace('_', ' ')} {seconds(value)}" for name, value in times.items())
    goodput = report.get("goodput", report.get("training_share"))
    return parts if goodput is None else f"{goodput:.0%} goodput ({parts})"


def _named(run: RunDir) -> list[str]:
    tags, note = named(run)
    return [_labelled(label, text) for label, text in (("tags", render.tags(tags)), ("note", note)) if text]


def _labelled(label: str, *parts: str) -> str:
    return screen.folded(f"  {label:10} {', '.join(part for part in parts if part)}", LABEL_WIDTH)


def _steps(numbers: Sequence[int]) -> str:
    """Some of the steps that were left out."""
    shown = ", ".join(map(str, sorted(numbers)[:STEPS_SHOWN]))
    more = f" … {len(numbers)} in all" if len(numbers) > STEPS_SHOWN else ""
    return f"{'step' if len(numbers) == 1 else 'steps'} {shown}{more}"


def _speed(state: RunState) -> str:
    """Mean samples a second over all steps that stand in the history."""
    training = sum(state.report.get(kind, 0.0) for kind in ("training", "data_wait", "checkpoint_stall"))
    if not training or not state.global_batch:
        return ""
    return f"{state.step * state.global_batch / training:,.0f} samples/s"


def table(rows: Sequence[RunRow], metric: str | None = None, width: int | None = None) -> str:
    """Format a list of runs, one line each; columns that a width has no room for are left out."""
    on_gpus, tagged = any(row.gpus for row in rows), any(row.tags for row in rows)
    own = [*(["GPUs"] if on_gpus else []), *(["tags"] if tagged else [])]
    lines: list[tuple[str, ...]] = [(*COLUMNS, *own, *filter(None, [metric]))]
    now = time.time()
    for row in rows:
        step = f"{row.step}/{row.total_steps}" if row.total_steps else "-"
        loss = f"{row.loss:.4g}" if row.loss is not None else "-"
        started, changed = (render.ago(now - moment) if moment else "-" for moment in (row.started, row.changed))
        cells = (row.strategy, row.cluster, str(row.workers), str(row.restarts))
        gpus = (",".join(row.gpus) or "-",) if on_gpus else ()
        more = () if metric is None else (f"{row.metrics[metric]:.5g}" if metric in row.metrics else "-",)
        tags = (render.tags(row.tags),) if tagged else ()
        lines.append((row.run, row.state, step, loss, *cells, started, changed, *gpus, *tags, *more))
    shown = render.fitted(lines, width, [*own, *SPARE, *filter(None, [metric])])
    text = columns(shown).split("\n")
    if "state" not in shown[0]:
        return "\n".join(text)
    at = shown[0].index("state")
    before = sum(max(len(line[one]) for line in shown) + 2 for one in range(at))
    return "\n".join(_with_state(line, before, cells[at]) for line, cells in zip(text, shown, strict=True))


def _with_state(line: str, at: int, state: str) -> str:
    """Put the state that begins at this place of a line in its colour."""
    return line[:at] + screen.coloured(state, STATE_STYLES.get(state, "")) + line[at + len(state) :]
