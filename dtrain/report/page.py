"""`dtrain report --html`: one page for a run. Pure, but for the recipe that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape

from dtrain.checkpoint.names import newest_by_step, newest_first
from dtrain.common.errors import DtrainError, Exit
from dtrain.common.secrets import recipe_without_secrets
from dtrain.common.serde import to_dict
from dtrain.job.job import Job, PluginChoice
from dtrain.launch import registry
from dtrain.record.goodput import Kind, Span
from dtrain.record.metric_curves import HELD_OUT, Curve
from dtrain.report import comparison, report
from dtrain.report.run_record import RunRecord
from dtrain.show import charts, page, render
from dtrain.show.charts import Bar, BarChart, Chart, Line, Marker
from dtrain.show.render import counted, seconds

MOST_ROWS = 30
"""Attempts that have a row of their own in the timeline."""
MOST_MARKERS = 150
MOST_CHARTS = 24


class _Clock:
    """Seconds of a run without the time that a person had it stopped."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._begin = spans[0].begin if spans else 0.0
        self._gaps = [(span.begin, span.end) for span in spans if span.kind is Kind.STOPPED]
        self.end = self.at(spans[-1].end) if spans else 1.0

    def at(self, time: float) -> float:
        """Return the position of a time in seconds since 1970."""
        left_out = sum(min(time, end) - begin for begin, end in self._gaps if time > begin)
        return max(0.0, time - self._begin - left_out)

    def gaps(self) -> list[Marker]:
        """Where time was left out."""
        return [Marker(self.at(begin), f"stopped for {seconds(end - begin)}", "--resume") for begin, end in self._gaps]


def report_page(record: RunRecord) -> str:
    """Format the whole page."""
    clock = _Clock(record.timeline.spans)
    marks = _failure_marks(record, clock)
    return page.page(
        f"{record.run.id}: {record.state.outcome}",
        [
            _head(record),
            page.section("Best and last", _best(record)),
            page.section("Where the time went", _account(record)),
            page.section("Timeline", _timeline(record, clock, marks), _over_time(record, clock, marks)),
            page.section("Metrics by step", page.columns([*_metrics(record), *_optimizer(record)])),
            page.section("Failures and what they cost", _failures(record)),
            page.section("Ranks that the others waited for", _stragglers(record)),
            page.section("Warnings", "".join(f"<p>{escape(text)}</p>" for text in record.state.warnings)),
            page.section("Recipe", _recipe(record)),
            page.section("Code and environment", _origin(record)),
        ],
    )


def _head(record: RunRecord) -> str:
    state, account = record.state, record.account
    good = {"done": "good", "failed": "bad", "gave up": "bad"}.get(state.outcome, "warn")
    reason = f" - {state.reason}" if state.reason else ""
    cost = sum(one.seconds for one in record.timeline.failures)
    values = [("time", seconds(account["total"]), "")]
    if "goodput" in account:
        values.append(("share of the time that trained (goodput)", f"{account['goodput']:.1%}", ""))
        if account.get("queued", 0.0) >= report.LEAST_SECONDS:
            values.append(("the same with the queue", f"{account['effective_share']:.1%}", ""))
    if state.total_steps:
        values.append(("steps", f"{charts.number(state.step)} of {charts.number(state.total_steps)}", ""))
    if record.samples_per_second:
        values.append(("samples/s", f"{record.samples_per_second:,.0f}", ""))
    failures = len(record.timeline.failures)
    values.append(("failures", f"{failures:,}", "warn" if failures else ""))
    if failures:
        values.append(("time that failures cost", seconds(cost), "warn"))
    rows = sorted(report.metric_rows(record), key=lambda row: not row[0].startswith(HELD_OUT))
    values += [(f"best {name}, {where}" if where else name, best, "") for name, _, best, where in rows[:3]]
    return (
        f'<h1>{escape(record.run.id)}</h1><p><b class="{good}">{escape(state.outcome)}</b>{escape(reason)}</p>'
        f'<p class="soft">{escape(report.headline(record))}</p>{page.tiles(values)}'
    )


def _account(record: RunRecord) -> str:
    rows = report.times(record)
    total = record.account["total"] or 1.0
    bar = "".join(
        f'<i style="width:{value / total:.3%};background:var({_color(kind)})" title="{kind}: {seconds(value)}"></i>'
        for kind, value, _ in rows if kind != "queued"
    )  # fmt: skip
    cells = [
        (f"{page.key(_color(kind))}{kind}", seconds(value), f"{share:.1%}" if kind != "queued" else "apart")
        for kind, value, share in rows
    ]
    return f'<div class="bar">{bar}</div>' + page.table(("kind", "time", "share"), cells, numeric=(1, 2), raw=(0,))


def _color(kind: str) -> str:
    return f"--kind-{kind.replace(' ', '_')}"


def _timeline(record: RunRecord, clock: _Clock, marks: Sequence[Marker]) -> str:
    spans = [span for span in record.timeline.spans if span.kind is not Kind.STOPPED]
    if not spans:
        return ""
    attempts = sorted({span.attempt for span in spans})
    if len(attempts) > MOST_ROWS:
        rows, row_of = [f"all {len(attempts)}"], dict.fromkeys(attempts, 0)
    else:
        rows = [f"attempt {number}" if number else "before" for number in attempts]
        row_of = {number: index for index, number in enumerate(attempts)}
    bars = [Bar(row_of[span.attempt], clock.at(span.begin), clock.at(span.end), span.kind.value) for span in spans]
    kinds = list(dict.fromkeys(span.kind.value for span in spans))
    names = page.legend([(f"--kind-{kind}", kind.replace("_", " ")) for kind in kinds])
    return names + BarChart(rows, bars, 0.0, clock.end, [*marks, *clock.gaps()]).svg()


def _over_time(record: RunRecord, clock: _Clock, marks: Sequence[Marker]) -> str:
    def line(label: str, curve: Curve, scale: float = 1.0) -> Line:
        return charts.line_of(label, curve, place=clock.at, scale=scale, breaks=breaks)

    breaks = [clock.at(time) for time in record.curves.begun]
    markers = [*marks, *clock.gaps()]
    speed = Chart(
        "samples per second",
        [line("samples/s", record.curves.speed)],
        0.0,
        clock.end,
        markers,
        timed=True,
        from_zero=True,
    ).svg()
    wait = Chart(
        "data wait", [line("data wait %", record.curves.data_wait, 100)], 0.0, clock.end, markers, height=120, timed=True,
        from_zero=True, text=charts.percent,
    ).svg()  # fmt: skip
    return (f"<h3>samples/s</h3>{speed}" if speed else "") + (
        f"<h3>share of the training time that waited for data</h3>{wait}" if wait else ""
    )


def _failure_marks(record: RunRecord, clock: _Clock) -> list[Marker]:
    """Failures at their time; those that lie too close to be told apart are one."""
    found: list[tuple[float, int, str]] = []
    least = clock.end / MOST_MARKERS
    for cost in record.timeline.failures:
        at = clock.at(cost.failure.time)
        if found and at - found[-1][0] < least:
            found[-1] = (found[-1][0], found[-1][1] + 1, found[-1][2])
        else:
            found.append((at, 1, f"attempt {cost.failure.attempt}: {render.failure(cost.failure)}"))
    return [Marker(at, text if count == 1 else f"{count} failures, the first: {text}") for at, count, text in found]


def _metrics(record: RunRecord) -> list[str]:
    """A chart for each metric, held-out values in that of their name."""
    metrics = record.curves.metrics
    names = list(dict.fromkeys(name.removeprefix(HELD_OUT) for name in metrics))
    last = max((curve.at[-1] for curve in metrics.values() if len(curve)), default=1.0)
    markers = _restart_marks(record)
    parts = []
    for name in names[:MOST_CHARTS]:
        lines = [
            charts.line_of(label, metrics[label], color, dashed=color != "--line-0")
            for label, color in ((name, "--line-0"), (HELD_OUT + name, "--line-1")) if label in metrics
        ]  # fmt: skip
        drawn = Chart(name, lines, 0.0, last, markers).svg()
        keys = page.legend([(line.color, line.label) for line in lines])
        parts.append(f"<h3>{escape(name)}</h3>{keys}{drawn}" if drawn else "")
    if len(names) > MOST_CHARTS:
        parts.append(f'<p class="soft">and {len(names) - MOST_CHARTS} more metrics</p>')
    return parts


def _optimizer(record: RunRecord) -> list[str]:
    """Learning rates and gradient norms, a chart for each."""
    curves = record.curves.optimizer
    last = max((curve.at[-1] for curve in curves.values() if len(curve)), default=1.0)
    markers = _restart_marks(record)
    parts = []
    for name, curve in list(curves.items())[:MOST_CHARTS]:
        drawn = Chart(name, [charts.line_of(name, curve)], 0.0, last, markers, height=120).svg()
        parts.append(f"<h3>{escape(name.replace('_', ' '))}</h3>{drawn}" if drawn else "")
    return parts


def _stragglers(record: RunRecord) -> str:
    rows = report.straggler_rows(record)
    return page.table(("time", "rank", "what", "cost"), rows, numeric=(3,)) if rows else ""


def _restart_marks(record: RunRecord) -> list[Marker]:
    """Steps that attempts began anew at; those that lie too close to be told apart are one."""
    steps = sorted(record.curves.restarts)
    least = (record.state.step or 1) / MOST_MARKERS
    found: list[list[int]] = []
    for step in steps:
        if found and step - found[-1][0] < least:
            found[-1].append(step)
        else:
            found.append([step])
    return [
        Marker(group[0], f"begun anew at step {group[0]:,}" if len(group) == 1 else f"begun anew {len(group)} times from step {group[0]:,}")
        for group in found
    ]  # fmt: skip


def _failures(record: RunRecord) -> str:
    groups = report.failure_groups(record.timeline.failures)
    rows = [
        (render.clock(group.first.failure), group.where, render.failure(group.first.failure), seconds(group.seconds),
         group.parts, f"{group.steps:,}")
        for group in groups[: 5 * report.MOST_FAILURES]
    ]  # fmt: skip
    if not rows:
        return ""
    shown = page.table(("time", "when", "what", "cost", "of which", "steps undone"), rows, numeric=(3, 5))
    more = len(groups) - len(rows)
    failed = record.state.exit_code in (Exit.USER_CODE, Exit.GAVE_UP)
    last = render.evidence(record.state.failures[-1]) if failed else ""
    return (
        shown
        + (f'<p class="soft">and {counted(more, "other cause")}</p>' if more else "")
        + page.folded("the end of the failing rank", last)
    )


def _best(record: RunRecord) -> str:
    rows = report.metric_rows(record)
    kept = newest_by_step(newest_first(path.name for path in record.run.checkpoints.glob("step-*")))
    shown = []
    for name, last, best, where in rows:
        step = where.removeprefix("at step ")
        before = max((one for one in kept if step.isdigit() and one <= int(step)), default=None)
        shown.append((name, last, best, step, "" if before is None else f"step {before}"))
    heads = ("metric", "last", "best", "at step", "checkpoint at or before it")
    return page.table(heads, shown, numeric=(1, 2, 3, 4)) if rows else ""


def _origin(record: RunRecord) -> str:
    """The commit, the command, the host and the packages."""
    origin = record.origin
    facts = [
        ("commit", f"{origin}{', changed since' if record.is_changed else ''}" if origin.commit else ""), ("repository", origin.remote),
        ("command", origin.command), ("host", origin.host), ("Python", origin.python), ("container", origin.container),
        ("modules", origin.loaded_modules),
        *((f"{record.state.cluster}: {name}", value) for name, value in (report.usage_rows(record.usage) if record.usage else ())),
    ]  # fmt: skip
    rows = [(name, text) for name, text in facts if text]
    packages = "\n".join(f"{name} {version}" for name, version in (origin.packages or {}).items())
    return (page.table(("what", ""), rows) if rows else "") + page.folded("packages", packages)


def _recipe(record: RunRecord) -> str:
    """What is not as by default, and the whole text."""
    try:
        text = recipe_without_secrets(record.run.recipe_copy.read_text())
    except OSError:
        return ""
    return _settings(record) + page.folded("the recipe of this run", text)


def _settings(record: RunRecord) -> str:
    try:
        job = record.run.job()
        usual = replace(
            Job(job.name), strategy=_usual("strategy", job.strategy), cluster=_usual("cluster", job.cluster)
        )
    except DtrainError:
        return ""
    changed = comparison.differences([usual, job])
    rows = [(key, value, "-" if default == "null" else default) for key, (default, value) in changed.items()]
    return page.table(("key", "in this run", "by default"), rows) if rows else ""


def _usual(kind: registry.Kind, chosen: PluginChoice) -> PluginChoice:
    """The same plugin with its default options."""
    try:
        return PluginChoice(chosen.name, to_dict(registry.plugin_class(kind, chosen.name).Options()))
    except TypeError:  # one of them has no default
        return PluginChoice(chosen.name)
