"""Output of `dtrain compare`: text, a page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from dtrain.common.errors import UsageError
from dtrain.report import comparison
from dtrain.report.comparison import Comparison
from dtrain.show import charts, page, picture
from dtrain.show.charts import Chart
from dtrain.show.render import columns
from dtrain.show.terminal_plot import Plot

COLORS = 8
MOST_CHARTS = 24
DRAWN_IN_TERMINAL = 600
"""Points of a curve."""
PICTURES = 9
"""Metrics in one picture."""


def text(found: Comparison, metrics: Sequence[str], *, colored: bool, width: int) -> str:
    """Differences, table, verdicts and curves for a terminal or a pipe."""
    parts = []
    if not found.differences:
        parts.append("the recipes are the same")
    elif not comparison.differing_columns(found):
        parts.append(columns([("key", *found.names), *((key, *values) for key, values in found.differences.items())]))
    parts.append(columns([comparison.columns(found), *comparison.rows(found)]))
    parts += ["\n".join(found.verdicts())] if len(found.records) > 1 else []
    for name in metrics:
        curves = [
            (label, record.curves.metrics[name].thinned(DRAWN_IN_TERMINAL))
            for label, record in zip(found.names, found.records, strict=True) if name in record.curves.metrics
        ]  # fmt: skip
        drawn = Plot(curves, width=max(20, min(100, width - 14)), colored=colored).text()
        parts.append(f"{name} by step\n{drawn}")
    return "\n\n".join(parts)


def chosen_metrics(found: Comparison, wanted: Sequence[str]) -> list[str]:
    """The metrics to draw: those that were asked for, or the loss; raises `UsageError` for one that no run has."""
    from dtrain.common.errors import nearest

    for name in wanted:
        if name not in found.metrics:
            raise UsageError(f"no run has the metric '{name}'", nearest(name, found.metrics) if found.metrics else "")
    main = comparison.main_metric(found)
    return list(wanted) or ([main] if main else [])


def html(found: Comparison) -> str:
    """Format one page that opens without a network."""
    heads = comparison.columns(found)
    rows = comparison.rows(found)
    colors = [_color(index) for index in range(len(rows))]
    marked = [(f"{page.key(color)}{escape(row[0])}", *row[1:]) for color, row in zip(colors, rows, strict=True)]
    changed = [(key, *values) for key, values in found.differences.items()]
    same = "" if changed else "<p>The recipes are the same.</p>"
    return page.page(
        f"{len(rows)} runs: {', '.join(found.names)}"[:120],
        [
            f"<h1>{len(rows)} runs</h1>",
            page.section(
                "Numbers",
                page.table(
                    heads, marked, numeric=range(1, len(heads)), raw=(0,), sorts=True, best=comparison.best_run(found)
                ),
            ),
            page.section("Differences of the recipes", same or page.table(("key", *found.names), changed)),
            page.section("Metrics by step", page.columns(_chart(found, name) for name in found.metrics[:MOST_CHARTS])),
            page.section("Are the weights the same?", "".join(f"<p>{escape(line)}</p>" for line in found.verdicts())),
        ],
    )


def _color(index: int) -> str:
    return f"--line-{index % COLORS}"


def _chart(found: Comparison, name: str) -> str:
    having = [(index, record) for index, record in enumerate(found.records) if name in record.curves.metrics]
    lines = [
        charts.line_of(found.names[index], record.curves.metrics[name], _color(index), dashed=index >= COLORS)
        for index, record in having
    ]
    last = max((record.curves.metrics[name].at[-1] for _, record in having), default=1.0)
    drawn = Chart(name, lines, 0.0, last).svg()
    keys = page.legend([(line.color, line.label) for line in lines])
    return f"<h3>{escape(name)}</h3>{keys}{drawn}" if drawn else ""


def write_png(found: Comparison, path: Path, metrics: Sequence[str]) -> None:
    """A picture of the curves; raises `UsageError` if what draws it is not installed."""
    picture.require()
    names = (list(metrics) or found.metrics)[:PICTURES]
    if not names:
        raise UsageError("these runs have no metrics to draw")
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = picture.figure(5.5 * across, 3.4 * down)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(down, across, place)
        for label, record in zip(found.names, found.records, strict=True):
            if name in record.curves.metrics:
                points = record.curves.metrics[name].thinned(charts.MOST_POINTS)
                axes.plot([at for at, _ in points], [value for _, value in points], label=label, linewidth=1.2)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize="small")
    picture.save(figure, path)
