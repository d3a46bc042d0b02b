"""A study as a page that opens without a network, and as text: the best so far, importance, trials, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from dtrain.launch import tuning
from dtrain.show import bar_chart, page, render
from dtrain.show.bar_chart import NamedValue
from dtrain.show.charts import Chart, Line, number
from dtrain.show.parallel_coordinates import Column, svg
from dtrain.study import control, cost, views
from dtrain.study.folder import StudyDir
from dtrain.study.journal import Journal, Trial, rank


def report_page(study: StudyDir) -> str:
    """The whole page."""
    found = control.trials(study)
    return page.page(
        study.id,
        [
            _head(study, found),
            _curve(study, found),
            _importance(study),
            _coordinates(study, found),
            _slices(study, found),
            page.section("Lineage", _lineage(study, found), panel=False),
            page.section("Trials", trials_table(study), panel=False),
        ],
    )


def text(study: StudyDir) -> str:
    """The report for a terminal."""
    found = control.trials(study)
    parts = [views.status(study), f"  {_cost(study, found)}"]
    if bars := _bars(study):
        parts += ["", "importance", bar_chart.text(bars, views.WIDTH)]
    if lines := views.lineage(found):
        parts += ["", "lineage", *lines]
    return "\n".join(parts)


def _head(study: StudyDir, found: Sequence[Trial]) -> str:
    ranked = rank(found, control.mode(study))
    best = ranked[0] if ranked and ranked[0].value is not None else None
    trained, left_out = cost.spent(study, found).steps, cost.saved(study, found).steps
    tiles = [("state", study.state, ""), ("trials", str(len(found)), "")]
    if best and study.tune.metric:
        tiles.append((study.tune.metric, views.number(best.value), "good"))
        tiles.append(("best trial", str(best.number), ""))
    tiles += [("trained for", render.seconds(sum(one.seconds for one in found)), ""), ("steps", str(trained), "")]
    tiles += [("steps left out", str(left_out), "")] if left_out else []
    return f"<h1>{study.id}</h1>" + page.tiles(tiles) + f"<p>{_cost(study, found)}</p>"


def _cost(study: StudyDir, found: Sequence[Trial]) -> str:
    took, left_out = cost.spent(study, found), cost.saved(study, found)
    unit = "GPU-hours" if study.job.resources.device == "gpu" else "worker-hours"
    told = f"cost: {took.steps} steps, {number(took.samples)} samples, {took.device_hours:.3g} {unit}"
    if not left_out.steps:
        return told
    share = left_out.steps / (took.steps + left_out.steps)
    return f"{told}; early stopping left out {left_out.steps} steps ({share:.0%}), about {left_out.device_hours:.3g} {unit}"


def _curve(study: StudyDir, found: Sequence[Trial]) -> str:
    points = views.best_so_far(found, control.mode(study)) if study.tune.metric else []
    every = [(float(one.number), one.value) for one in found if one.value is not None and one.state != "failed"]
    lines = [Line("best so far", points), Line("trial", every, "--line-1", dashed=True)]
    return page.section("Best so far", Chart(study.tune.metric, lines, 0, max(1, len(found) - 1)).svg())


def _bars(study: StudyDir) -> list[NamedValue]:
    if not study.journal.exists() or not study.tune.metric:
        return []
    found = Journal(study.journal, study.id, control.mode(study)).importances()
    return [NamedValue(key, share, f"{share:.0%}") for key, share in found.items()]


def _importance(study: StudyDir) -> str:
    return page.section("Importance", bar_chart.svg("importance", _bars(study)))


def _slices(study: StudyDir, found: Sequence[Trial]) -> str:
    """A chart for each key with numbers: the metric over its values."""
    parts = []
    for key in study.tune.over if study.tune.metric else ():
        log = tuning.domain(study.tune.over[key]).log
        points = sorted(
            (math.log10(one.values[key]) if log else float(one.values[key]), one.value)
            for one in _with_value(found)
            if isinstance(one.values.get(key), int | float) and one.value is not None
        )
        if len({at for at, _ in points}) > 1:
            chart = Chart(key, [Line(key, points, dashed=True)], points[0][0], points[-1][0], whole=False)
            parts.append(f"<h3>{escape(f'log10 of {key}' if log else key)}</h3>{chart.svg()}")
    return page.section("Slices", *parts)


def _with_value(found: Sequence[Trial]) -> list[Trial]:
    return [one for one in found if one.value is not None and math.isfinite(one.value) and one.state != "failed"]


def _coordinates(study: StudyDir, found: Sequence[Trial]) -> str:
    """A line for each trial through its values and its result, the best drawn strongest."""
    ranked = rank(_with_value(found), control.mode(study)) if study.tune.metric else []
    columns = []
    for key, tried in study.tune.over.items():
        domain, values = tuning.domain(tried), [one.values[key] for one in ranked]
        choices = [views.number(choice) for choice in domain.choices]
        columns.append(Column(key, [views.number(one) for one in values] if choices else values, choices, domain.log))
    columns.append(Column(study.tune.metric, [one.value or 0.0 for one in ranked]))
    return page.section("Parallel coordinates", svg("trials", columns, [views.line(study, one) for one in ranked]))


def _lineage(study: StudyDir, found: Sequence[Trial]) -> str:
    """Who went on from whose state, and with which values."""
    keys = list(study.tune.over)
    taken = sorted(
        ((one, trial.number) for trial in found for one in trial.took_over), key=lambda each: (each[0].step, each[1])
    )
    rows = [
        [str(one.step), str(number), str(one.trial), *(views.number(one.values.get(key)) for key in keys)]
        for one, number in taken
    ]
    heads = ["step", "trial", "from the state of trial", *keys]
    return page.table(heads, rows, numeric=range(len(heads))) if rows else ""


def trials_table(study: StudyDir) -> str:
    """All trials with their values, the best first."""
    found, keys = control.trials(study), list(study.tune.over)
    heads = ["rank", "trial", *keys, study.tune.metric or "-", "step", "time", "state", "run"]
    rows = [
        [
            str(place),
            str(one.number),
            *(views.number(one.values.get(key)) for key in keys),
            "-" if one.value is None else views.number(one.value),
            str(one.step),
            render.seconds(one.seconds),
            one.failure or views.shown_state(study, one),
            study.trial(one.number).id,
        ]
        for place, one in enumerate(rank(found, control.mode(study)), 1)
    ]
    return page.table(heads, rows, numeric=range(len(keys) + 5))
