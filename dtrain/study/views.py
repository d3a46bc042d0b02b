"""A study for people: its table, and what its trials cost. Pure but for reading the journal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dtrain.common.errors import Exit
from dtrain.launch import tuning
from dtrain.record import event_log
from dtrain.record.events import Metrics, Progress
from dtrain.show import render
from dtrain.study import control
from dtrain.study.folder import StudyDir
from dtrain.study.journal import Trial, rank

WIDTH = 80
"""Characters of a line that the table has at most."""
MOST_LETTERS = 16
"""Of a value or of the head of a column."""


def status(study: StudyDir, width: int | None = None) -> str:
    """The state of a study and its trials, the best first."""
    found = control.trials(study)
    lines = [f"{study.id}: {study.state}{_why(study)}", f"  {_counts(study, found)}"]
    if found:
        lines.append(table(study, found, min(width or WIDTH, WIDTH)))
    if study.state in ("lost", "stopped"):
        lines.append(f"  go on with: dtrain resume {study.id}")
    return "\n".join(lines)


def _why(study: StudyDir) -> str:
    end = None if study.goes_on() else study.end()
    if end is None:
        return f" - its process is gone, its trials are not ({study.log})" if not study.goes_on() else ""
    hint = f"\n  {end['hint']}" if end.get("hint") else ""
    return f" - {end['reason']}{hint}"


def _counts(study: StudyDir, found: Sequence[Trial]) -> str:
    states = [shown_state(study, one) for one in found]
    counts = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
    parts = [render.counted(len(found), "trial") + (f" ({counts})" if counts else "")]
    spent = sum(one.seconds for one in found)
    parts += [f"trained for {render.seconds(spent)}"] if spent else []
    left = time_left(study, found) if study.goes_on() else None
    parts += [f"about {render.seconds(left)} to go"] if left else []
    return ", ".join(parts)


def time_left(study: StudyDir, found: Sequence[Trial]) -> float | None:
    """Seconds until the end, if trials go on ending as often as they did; None if that is not known."""
    ended = [one for one in found if one.state != "running" or one.rungs]
    total = tuning.trials_of(study.tune)
    if not ended or total <= len(ended):
        return None
    return (time.time() - found[0].began) / len(ended) * (total - len(ended))


def table(study: StudyDir, found: Sequence[Trial], width: int = WIDTH) -> str:
    """The trials, the best first, with the values that differ between them; columns that a width has no room for are left out."""
    ranked = rank(found, control.mode(study))
    keys = [key for key in study.tune.over if len({repr(one.values.get(key)) for one in found}) > 1]
    heads = _heads(keys)
    lines = [["rank", "trial", *heads, _cut(study.tune.metric or "-"), "step", "state"]]
    for place, one in enumerate(ranked, 1):
        known = one.value is not None and one.state != "failed" and study.tune.metric
        value = number(one.value) if known else "-"
        values = [_cut(number(one.values.get(key))) for key in keys]
        state = shown_state(study, one)
        step = _step(study, one) if state == "running" else one.step
        lines.append([str(place) if known else "-", str(one.number), *values, value, str(step or "-"), state])
    rows = render.fitted(lines, width, list(reversed(heads)))
    text = render.columns(rows)
    return "\n".join(line[:width].rstrip() for line in text.split("\n"))


def _step(study: StudyDir, trial: Trial) -> int:
    """The step that a trial is at which trains now."""
    events = event_log.read(study.trial(trial.number).events)
    return max((event.step for event in events if isinstance(event, Progress | Metrics)), default=trial.step)


def _heads(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or all of it where two end alike."""
    short = [key.rpartition(".")[2] for key in keys]
    return [_cut(name if short.count(name) == 1 else key) for name, key in zip(short, keys, strict=True)]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


def number(value: Any) -> str:
    """A value of a trial in a table."""
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def shown_state(study: StudyDir, trial: Trial) -> str:
    """`waiting` for a trial that has stopped at a rung and may go on; of one that failed, the class."""
    if trial.state == "running" and trial.rungs and not study.trial(trial.number).supervised():
        return "waiting"
    return f"failed: {trial.failure.partition(':')[0]}" if trial.state == "failed" else trial.state


def line(study: StudyDir, trial: Trial) -> str:
    """What the journal says of a trial, in one line."""
    state = trial.state if trial.state != "running" else "at a rung" if trial.rungs else "started"
    known = trial.value is not None and study.tune.metric
    value = f"{study.tune.metric} {number(trial.value)} at step {trial.step}" if known else ""
    return f"trial {trial.number}: " + "  ".join(
        filter(None, (state, value, trial.failure[:WIDTH], f"({shown_values(trial.values)})"))
    )


def lineage(found: Sequence[Trial]) -> list[str]:
    """Who went on from whose state, and with which values, a line each in the order of steps."""
    taken = [(one.step, trial.number, one) for trial in found for one in trial.took_over]
    return [
        f"step {step}: trial {number} from the state of trial {one.trial} ({shown_values(one.values)})"
        for step, number, one in sorted(taken, key=lambda each: each[:2])
    ]


def shown_values(values: Mapping[str, Any]) -> str:
    """Key=value of each."""
    return ", ".join(f"{key}={number(value)}" for key, value in values.items())


def best_so_far(found: Sequence[Trial], mode: str) -> list[tuple[float, float]]:
    """(trial, best value until then) of the trials that have one."""
    points: list[tuple[float, float]] = []
    for one in found:
        if one.value is None or not math.isfinite(one.value) or one.state == "failed":
            continue
        before = points[-1][1] if points else one.value
        points.append((one.number, (min if mode == "min" else max)(before, one.value)))
    return points


def exit_code(study: StudyDir) -> int:
    """The exit code of a study that has ended; of one that was killed, that of giving up."""
    end = study.end()
    return int(end["exit_code"]) if end else int(Exit.GAVE_UP)
