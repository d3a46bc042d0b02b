"""Output of `dtrain drill`: a table, what broke and how to repeat it; as text and as a page."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path

from dtrain.drill.fault import PHASES, STEP, Fault, Schedule, Side
from dtrain.drill.result import DrillResult, Row
from dtrain.show import page
from dtrain.show.render import columns, counted, seconds

HEADS = (
    "fault", "strikes", "detected after", "class given", "next step after", "steps lost", "time lost", "restarts charged",
    "end state", "verdict",
)  # fmt: skip
NUMERIC = (2, 4, 5, 6, 7)
MOST_NAMED = 3
"""Faults of a run whose names stand in the table."""


def command(result: DrillResult, row: Row, given: Sequence[str]) -> str:
    """Format the command that repeats a run; `given` are the options that the drill was started with."""
    words = ["dtrain", "drill", result.recipe, "--steps", str(result.steps), "--only", row.case.text, *given]
    return shlex.join(words)


def text(result: DrillResult, given: Sequence[str], *, width: int, colored: bool) -> str:
    """The whole answer; a table that is too wide becomes several."""
    parts = list[str]()
    shown = [row for row in result.rows if row.verdict in ("kept", "BROKEN")]
    if shown:
        table = [HEADS, *(cells(row) for row in shown)]
        parts += [_colored(columns(part), colored=colored) for part in _fitting(table, width)]
    parts += _missing(result)
    for row in result.broken:
        lines = [f"BROKEN: {row.case.text}", *(f"  {one}" for one in row.broken), f"  its run: {row.run}"]
        if row is not result.undisturbed:
            lines.append(f"  again: {command(result, row, given)}")
        parts.append("\n".join(lines))
    parts += [f"note: {note}" for note in result.notes]
    return "\n\n".join([*parts, conclusion(result)])


def _fitting(lines: Sequence[Sequence[str]], width: int) -> list[list[list[str]]]:
    """The table, cut between columns where it is too wide; each part has the fault and its place, and the verdict."""
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    last = len(widths) - 1
    around = widths[0] + widths[1] + widths[last]
    groups: list[list[int]] = [[]]
    for column in range(2, last):
        if groups[-1] and around + sum(widths[one] for one in [*groups[-1], column]) > width + 2:
            groups.append([])
        groups[-1].append(column)
    return [[[line[place] for place in (0, 1, *group, last)] for line in lines] for group in groups]


def conclusion(result: DrillResult) -> str:
    """Format the result as one sentence."""
    drilled, broken = len(result.drilled), len(result.broken)
    ended = "interrupted: " if result.interrupted else ""
    if result.undisturbed.exit_code:
        return f"{ended}the undisturbed run failed: nothing was drilled"
    if result.undisturbed.broken:
        return f"{ended}the undisturbed run itself is not as promised: see above"
    if not drilled:
        return f"{ended}no fault was drilled"
    if broken:
        return f"{ended}{counted(broken, 'run')} of {drilled} broke a promise; the runs are in {result.folder}"
    faults = sum(len(row.case.schedule) for row in result.drilled)
    where = "" if drilled == 1 else f" in {drilled} runs"
    return f"{ended}every promise was kept under {counted(faults, 'fault')}{where}; the undisturbed run raised no false alarm"


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [
        *_faults(row.case.schedule),
        _after(row.detected_seconds), " + ".join(dict.fromkeys(row.classes)) or "-", _after(row.next_step_seconds),
        "-" if row.steps_lost is None or row.exit_code else str(row.steps_lost), _after(row.seconds_lost), str(row.restarts_charged),
        row.end, row.verdict,
    ]  # fmt: skip


def _faults(schedule: Schedule) -> tuple[str, str]:
    """Format what strikes, and where."""
    if len(schedule) > MOST_NAMED:
        return f"{len(schedule)} faults", f"from {_where(schedule[0])}, to {_where(schedule[-1])}"
    return "+".join(fault.name for fault in schedule), ", then ".join(map(_where, schedule))


def _where(fault: Fault) -> str:
    if fault.seconds is not None:
        return f"after {fault.seconds:g} s, rank {fault.rank}"
    of = "" if fault.type.side is Side.SUPERVISOR else f", rank {fault.rank}"
    if fault.phase == STEP:
        return f"step {fault.step}{of}"
    return f"{fault.phase.replace('-', ' ')}{f' from step {fault.step} on' if fault.step else ''}{of}"


def _after(value: float | None) -> str:
    return "-" if value is None else seconds(value) if value >= 1 else f"{value * 1000:.0f} ms"


def _missing(result: DrillResult) -> list[str]:
    """Format what was not drilled, by its reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in result.rows:
        if row.verdict == "not applicable":
            reasons[f"not applicable: {row.case.not_applicable}"].append(row.case.name)
        elif row.verdict == "not drilled":
            reasons[f"not drilled: {row.problem}"].append(row.case.name)
    return ["\n".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())] if reasons else []


def _colored(table: str, *, colored: bool) -> str:
    if not colored:
        return table
    lines = [f"\x1b[31m{line}\x1b[0m" if line.endswith("BROKEN") else line for line in table.splitlines()]
    return "\n".join(lines)


def html(result: DrillResult, given: Sequence[str]) -> str:
    """Format one page that opens without a network."""
    rows = [[*cells(row)[:-1], _verdict(row)] for row in result.rows if row.verdict in ("kept", "BROKEN")]
    broken = "".join(
        f"<h3>{escape(row.case.text)}</h3>"
        + "".join(f"<p>{escape(one)}</p>" for one in row.broken)
        + f"<pre>{escape(command(result, row, given))}</pre>"
        for row in result.broken
    )
    lost = [row.seconds_lost for row in result.drilled if row.seconds_lost is not None]
    tiles = [
        ("faults drilled", str(len(result.drilled)), ""),
        ("promises broken in", counted(len(result.broken), "run"), "bad" if result.broken else "good"),
        ("longest to the next step", _after(max((row.next_step_seconds or 0 for row in result.drilled), default=None)), ""),
        ("most time lost", _after(max(lost, default=None)), ""),
    ]  # fmt: skip
    missing = "".join(f"<p>{escape(line)}</p>" for part in _missing(result) for line in part.splitlines())
    kinds = dict.fromkeys(fault.name for row in result.rows for fault in row.case.schedule)
    types = {fault.name: fault.type.text for row in result.rows for fault in row.case.schedule}
    phases = dict.fromkeys(fault.phase for row in result.rows for fault in row.case.schedule)
    meaning = [(name, types[name]) for name in kinds] + [(phase.replace("-", " "), PHASES[phase]) for phase in phases]
    return page.page(
        f"drill: {Path(result.recipe).stem}",
        [
            f"<h1>drill: {escape(Path(result.recipe).stem)}</h1><p>{escape(conclusion(result))}</p><p class='soft'>{escape(result.job)}</p>",
            page.tiles(tiles),
            page.section("Promises that were broken", broken),
            page.section("Faults", page.table(HEADS, rows, numeric=NUMERIC, raw=(len(HEADS) - 1,)) if rows else ""),
            page.section("What was not drilled", missing),
            page.section("What they are", page.table(("fault or phase", "what is done, or when"), meaning)),
        ],
    )  # fmt: skip


def _verdict(row: Row) -> str:
    return f'<b class="{"bad" if row.broken else "good"}">{row.verdict}</b>'
