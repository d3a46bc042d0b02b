"""Output of `dtrain bench`: text, a page and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from dtrain.bench.measurement import Measurement
from dtrain.bench.result import BenchResult, Recommendation, Row
from dtrain.bench.variants import WORKERS, Variant
from dtrain.report.comparison_views import COLORS
from dtrain.show import bar_chart, page, picture
from dtrain.show.bar_chart import NamedValue
from dtrain.show.charts import Chart, Line
from dtrain.show.render import columns, counted, seconds, size

MOST_METRICS = 3
"""On held-out data that have columns of their own."""
SPEED, LEARNED = "Speed and what it costs", "After equally many samples"
RESTLESS = 0.25
"""Spread from which a reader is warned."""
DISTURBED = 0.1
"""Share of the processors that other programs used, from which a reader is warned."""
Cell = Callable[[Measurement], str]


def announcement(variants: Sequence[Variant], steps: int, repeats: int) -> str:
    """Format what is about to be measured."""
    able = [one for one in variants if one.job]
    samples = max((one.job.train.steps or 0) * one.job.train.global_batch for one in able if one.job)
    times = "" if repeats == 1 else f", each {repeats} times in turn"
    lines = [
        f"{counted(len(able), 'combination')}{times}, one after another, so that none disturbs another: {samples:,} samples "
        f"each (at least {steps} steps, the first fifth is warm-up)"
    ]
    return "\n".join([*lines, *(f"cannot run: {one.label}: {one.problem}" for one in variants if not one.job)])


def heads(result: BenchResult) -> list[str]:
    """Heads of the table's columns."""
    first = ["recipe"] if result.several_recipes or not result.keys else []
    return [*first, *(_short(key) for key in result.keys), *_columns(result)]


def _short(key: str) -> str:
    return "workers" if key == WORKERS else key.removeprefix("strategy.")


def cells(result: BenchResult, row: Row) -> list[str]:
    """A row of the table; of a combination that was not measured, '-'."""
    first = [row.variant.name] if result.several_recipes or not result.keys else []
    values = [_value(row, key) for key in result.keys]
    numbers = (cell(row) if row.measurement else "-" for cell in _columns(result).values())
    return [*first, *values, *numbers]


def _value(row: Row, key: str) -> str:
    value = row.variant.values.get(key, "-")
    return f"{value} ({row.strategy})" if value == "auto" and row.strategy else value


def _columns(result: BenchResult) -> dict[str, Callable[[Row], str]]:
    """Head → what stands in a row that was measured; columns that would be empty are left out."""

    def of(cell: Cell) -> Callable[[Row], str]:
        return lambda row: cell(row.measurement) if row.measurement else "-"

    found: dict[str, Callable[[Row], str]] = {
        "samples/s": lambda row: f"{row.speed:,.0f}",
        "spread": of(_spread),
        "efficiency": lambda row: _optional(result.efficiency(row), "{:.0%}".format),
        "memory": of(lambda one: _optional(one.memory_bytes, size)),
        "device memory": of(lambda one: _optional(one.device_memory_bytes, size)),
        "first step": of(lambda one: _optional(one.first_step_seconds, seconds)),
        "compile": of(lambda one: _optional(one.compile_seconds, seconds)),
        "data wait": of(lambda one: _optional(one.data_wait, "{:.1%}".format)),
        "loss": of(lambda one: _optional(one.loss, "{:.4g}".format)),
    }
    names = dict.fromkeys(name for row in result.rows if row.measurement for name, _ in row.measurement.held_out)
    for name in list(names)[:MOST_METRICS]:
        found[f"held-out {name}"] = of(lambda one, name=name: _optional(dict(one.held_out).get(name), "{:.4g}".format))  # type: ignore[misc]
    measured = result.measured
    return {head: cell for head, cell in found.items() if any(cell(row) != "-" for row in measured)}


def _optional(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def _spread(one: Measurement) -> str:
    return f"±{_spread_share(one):.0%}" if one.spread else "-"


def _spread_share(one: Measurement) -> float:
    """Half the width of the middle half of the reports, as a share of their median."""
    low, high = one.spread or (0.0, 0.0)
    return (high - low) / 2 / (one.samples_per_second or 1.0)


def text(result: BenchResult, width: int, *, colored: bool) -> str:
    """Table, bars and recommendation for a terminal or a pipe."""
    if not result.measured:
        parts = [
            "nothing was measured",
            *(f"  {row.variant.label}: {row.problem}" for row in result.rows if not result.interrupted),
        ]
    else:
        parts = ["", _tables(result, width if colored else None)]
        parts += ["", bar_chart.text(_speeds(result), min(110, width))] if len(result.measured) > 1 else []
    parts += [f"note: {note}" for note in notes(result)]
    chosen = result.recommendation()
    if chosen:
        bold, plain = ("\x1b[1m", "\x1b[0m") if colored else ("", "")
        parts += ["", f"{bold}take {chosen.row.variant.label}{plain}", *(f"  {reason}" for reason in chosen.reasons)]
        parts.append(f"  {chosen.row.variant.command}")
    if result.interrupted:
        parts.append("interrupted: the rest was not measured")
    return "\n".join(parts)


def notes(result: BenchResult) -> list[str]:
    """Remarks that a reader of the numbers must know."""
    found = list(result.notes)
    disturbed = [row for row in result.measured if row.others >= DISTURBED]
    if disturbed:
        shares = "; ".join(f"{row.variant.label}: {row.others:.0%}" for row in disturbed)
        found.append(
            f"other programs used processors of this machine during the runs ({shares}): repeat it when it is idle"
        )
    restless = [row for row in result.measured if row.measurement and _spread_share(row.measurement) >= RESTLESS]
    if restless:
        found.append(
            f"reports lie far apart ({'; '.join(row.variant.label for row in restless)}): measure longer (--steps, --repeats)"
        )
    if any(result.efficiency(row) is not None for row in result.rows):
        found.append(
            "efficiency: speed of a worker as a share of a worker's on the fewest workers; the global batch stays the same"
        )
    return found


def _tables(result: BenchResult, width: int | None) -> str:
    """Format all rows; one that was not measured has the reason in place of its numbers. Too wide a table is split."""
    lines = [heads(result), *(cells(result, row) for row in result.rows)]
    named = len(heads(result)) - len(_columns(result))
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    groups: list[list[int]] = [[]]
    for column in range(named, len(widths)):
        if width and groups[-1] and sum(widths[:named]) + sum(widths[one] for one in [*groups[-1], column]) > width + 2:
            groups.append([])
        groups[-1].append(column)
    return "\n\n".join(
        _table(result, [[line[column] for column in (*range(named), *group)] for line in lines], named, first=group is groups[0])
        for group in groups
    )  # fmt: skip


def _table(result: BenchResult, lines: Sequence[Sequence[str]], named: int, *, first: bool) -> str:
    names = columns([line[:named] for line in lines]).split("\n")
    width = max(map(len, names))
    head, *drawn = columns(lines).split("\n")
    shown = [head]
    for name, line, row in zip(names[1:], drawn, result.rows, strict=True):
        if not row.problem:
            shown.append(line)
        elif first:
            shown.append(f"{name:<{width}}  {row.problem}")
    return "\n".join(shown)


def _speeds(result: BenchResult) -> list[NamedValue]:
    return [
        NamedValue(row.variant.label, row.speed, f"{row.speed:,.0f}", _color(result, row), _range(row))
        for row in result.measured
    ]


def _range(row: Row) -> tuple[float, float] | None:
    return row.measurement.spread if row.measurement else None


def _color(result: BenchResult, row: Row) -> str:
    return f"--line-{result.rows.index(row) % COLORS}"


def html(result: BenchResult) -> str:
    """Format one page that opens without a network."""
    names = list(dict.fromkeys(row.variant.name for row in result.rows))
    problems = [(row.variant.label, row.problem) for row in result.rows if row.problem]
    remarks = "".join(f'<p class="soft">{escape(note)}</p>' for note in notes(result))
    return page.page(
        f"bench: {', '.join(names)}",
        [
            f"<h1>bench: {escape(', '.join(names))}</h1>" + ("<p>Interrupted: not all was measured.</p>" if result.interrupted else ""),
            _advice(result.recommendation()),
            *(page.section(title, table, remarks if title == SPEED else "") for title, table in _html_tables(result)),
            page.section("Not measured", page.table(("combination", "why"), problems) if problems else ""),
            page.section("Samples a second", bar_chart.svg("samples a second", _speeds(result))),
            page.section("Scaling", _scaling(result)),
            page.section("Memory of all workers", bar_chart.svg("memory", list(_memory(result)))),
            page.section("Time to the first step (fainter: compiling)", bar_chart.svg("first step", list(_starts(result)))),
            page.section("Loss by samples", _losses(result)),
        ],
    )  # fmt: skip


def _html_tables(result: BenchResult) -> Iterator[tuple[str, str]]:
    """Speed and what it costs; then what was learned: (title, table)."""
    shown, rows = heads(result), [cells(result, row) for row in result.rows]
    named = len(shown) - len(_columns(result))
    learned = next((place for place, head in enumerate(shown) if head.endswith("loss")), len(shown))
    keys = [page.key(_color(result, row)) for row in result.rows]
    for title, places in ((SPEED, range(named, learned)), (LEARNED, range(learned, len(shown)))):
        lines = [
            (f'<span class="name">{key}{escape(row[0])}</span>', *row[1:named], *(row[place] for place in places))
            for key, row in zip(keys, rows, strict=True)
        ]
        if places:
            chosen = [*shown[:named], *(shown[place] for place in places)]
            yield title, page.table(chosen, lines, numeric=range(named, len(chosen)), raw=(0,))


def _advice(chosen: Recommendation | None) -> str:
    if chosen is None:
        return ""
    reasons = "".join(f"<p>{escape(reason)}</p>" for reason in chosen.reasons)
    command = f"<pre>{escape(chosen.row.variant.command)}</pre>"
    return page.section(f"Take {chosen.row.variant.label}", reasons, command)


def _memory(result: BenchResult) -> Iterator[NamedValue]:
    for row in result.measured:
        if row.measurement and row.measurement.memory_bytes:
            used = row.measurement.memory_bytes
            yield NamedValue(row.variant.label, used, size(used), _color(result, row))


def _starts(result: BenchResult) -> Iterator[NamedValue]:
    for row in result.measured:
        if row.measurement and row.measurement.first_step_seconds:
            whole, part = row.measurement.first_step_seconds, row.measurement.compile_seconds or 0.0
            yield NamedValue(row.variant.label, whole, seconds(whole), _color(result, row), part=min(part, whole))


def _losses(result: BenchResult) -> str:
    lines = [
        Line(row.variant.label, row.measurement.losses, _color(result, row), dashed=index >= COLORS)
        for index, row in enumerate(result.rows)
        if row.measurement and row.measurement.losses
    ]
    last = max((line.points[-1][0] for line in lines), default=1.0)
    return _with_legend(lines, Chart("loss", lines, 0.0, last).svg())


def _scaling(result: BenchResult) -> str:
    """Samples a second by workers, with what they would be if each worker did as much as on the fewest."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(result.measured, key=lambda row: row.workers):
        if result.efficiency(row) is not None:
            values = [value for key, value in row.variant.values.items() if key != WORKERS]
            first = [row.variant.name] if result.several_recipes or not values else []
            groups.setdefault(", ".join([*first, *values]), []).append(row)
    lines = list[Line]()
    for index, (name, rows) in enumerate(groups.items()):
        least, color = rows[0], f"--line-{index % COLORS}"
        points = [(float(row.workers), row.speed) for row in rows]
        lines.append(Line(name, points, color))
        ideal = [(at, least.speed / least.workers * at) for at, _ in points]
        lines.append(Line(f"{name}, if each worker did as much", ideal, color, dashed=True))
    if not lines:
        return ""
    ends = [at for line in lines for at, _ in line.points]
    drawn = Chart("samples a second by workers", lines, min(ends), max(ends), from_zero=True).svg()
    return (
        _with_legend(lines, drawn)
        + '<p class="soft">by workers; dashed: if each worker did as much as on the fewest</p>'
    )


def _with_legend(lines: Sequence[Line], drawn: str) -> str:
    keys = {line.label: line.color for line in lines if not line.label.endswith("did as much")}
    return page.legend([(color, label) for label, color in keys.items()]) + drawn if drawn else ""


def write_png(result: BenchResult, path: Path) -> None:
    """The bars and the losses as a picture; raises `UsageError` if what draws it is not installed."""
    parts = {
        "samples a second": _speeds(result),
        "memory (GB)": list(_memory(result)),
        "time to the first step (s)": list(_starts(result)),
    }
    drawn = picture.figure(13, 2.2 + 0.9 * len(result.measured))
    places = iter(drawn.subplots(2, 2).flat)
    for title, bars in parts.items():
        axes, scale = next(places), 1e-9 if title.startswith("memory") else 1.0
        colors = [f"C{result.rows.index(row) % 10}" for row in result.measured][: len(bars)]
        axes.barh([bar.label for bar in bars], [bar.value * scale for bar in bars], color=colors)
        for number, bar in enumerate(bars):
            axes.annotate(
                bar.text,
                (bar.value * scale, number),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.set_title(title)
    axes = next(places)
    for row in result.measured:
        if row.measurement and row.measurement.losses:
            points = row.measurement.losses
            color = f"C{result.rows.index(row) % 10}"
            axes.plot([at for at, _ in points], [loss for _, loss in points], label=row.variant.label, color=color)
    axes.set_title("loss by samples")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    picture.save(drawn, path)
