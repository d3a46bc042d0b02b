"""Runs beside each other, without runs: what differs, how it is called, and what is hidden."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dtrain.common.errors import UsageError
from dtrain.control.select import in_order, metric_column
from dtrain.control.state import RunRow
from dtrain.job.job import Job, Notify, PluginChoice
from dtrain.record.events import AttemptStarted, Evaluation, Metrics
from dtrain.record.metric_curves import Curve, MetricCurves
from dtrain.report.comparison import differences, short_names
from dtrain.show.terminal_plot import Plot


def job(**changes: object) -> Job:
    base = Job(
        name="a",
        task="t.py:T",
        folder="/x",
        strategy=PluginChoice("ddp", {"bucket": 25}),
        cluster=PluginChoice("local", {}),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_only_keys_that_differ_are_shown_as_a_recipe_has_them() -> None:
    other = job(name="b", folder="/y", strategy=PluginChoice("fsdp", {}), args=("--lr", "1"))
    assert differences([job(), other]) == {
        "args": ["[]", '["--lr", "1"]'], "strategy": ["ddp", "fsdp"], "strategy.bucket": ["25", "-"],
    }  # fmt: skip


def test_values_that_may_be_secret_are_told_apart_and_not_shown() -> None:
    shown = differences([job(env={"API": "abc"}), job(env={"API": "xyz"}), job(env={"API": "abc"})])
    assert shown == {"env.API": ["value 1", "value 2", "value 1"]}
    shown = differences([job(notify=Notify(webhook="https://chat/xyz")), job()])
    assert shown == {"notify.webhook": ["value 1", "value 2"]}


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["d-lr1-20260101-000000-aaaa", "d-lr2-20260101-000000-bbbb"], ["lr1", "lr2"]),
        (["d-20260101-000000-aaaa", "d-20260101-000001-bbbb"], ["000000-aaaa", "000001-bbbb"]),
        (["one-20260101-000000-aaaa", "two-20260101-000000-bbbb"], ["one", "two"]),
        (["one-20260101-000000-aaaa"], ["one-20260101-000000-aaaa"]),
    ],
)
def test_names_are_as_short_as_they_can_be(ids: list[str], names: list[str]) -> None:
    assert short_names(ids) == names


def test_runs_are_sorted_by_a_metric_the_best_first_and_those_without_it_last() -> None:
    rows = [
        RunRow("none", "failed"), RunRow("low", "done", metrics={"held-out accuracy": 0.2, "loss": 1.0}),
        RunRow("nan", "done", metrics={"held-out accuracy": float("nan")}), RunRow("high", "done", metrics={"held-out accuracy": 0.9, "loss": 2.0}),
    ]  # fmt: skip
    assert [row.run for row in in_order(rows, "accuracy")][:2] == ["high", "low"]
    assert [row.run for row in in_order(rows, "loss")][:2] == ["low", "high"]
    assert metric_column(rows, "accuracy") == "held-out accuracy"
    with pytest.raises(UsageError, match="--sort acuracy"):
        in_order(rows, "acuracy")


def test_a_step_that_was_trained_again_is_in_a_curve_once() -> None:
    curves = MetricCurves()
    for step, value in ((1, 4.0), (2, 3.0), (3, 2.0)):
        curves.add(Metrics(time=step, step=step, values={"loss": value}))
    curves.add(Evaluation(time=3, step=3, values={"loss": 9.0}))
    curves.add(AttemptStarted(attempt=2, step=1, checkpoint=None, nodes=(), workers=1))
    curves.add(Metrics(time=5, step=2, values={"loss": 2.5}))
    assert list(zip(curves.metrics["loss"].at, curves.metrics["loss"].values, strict=True)) == [(1, 4.0), (2, 2.5)]
    assert len(curves.metrics["held-out loss"]) == 0
    assert curves.restarts == [1]


def test_losses_part_at_the_first_step_that_differs() -> None:
    one, other = MetricCurves(), MetricCurves()
    for step in range(1, 6):
        one.add(Metrics(step=step, values={"loss": 1.0}))
        other.add(Metrics(step=step, values={"loss": 1.0 if step < 4 else 2.0}))
    assert one.parts_from(other) == 4
    assert one.parts_from(one) is None


def test_a_thinned_curve_keeps_its_extremes() -> None:
    curve = Curve()
    for at in range(100_000):
        curve.add(at, 1000.0 if at == 77_777 else -1000.0 if at == 3 else float(at % 7))
    points = curve.thinned(400)
    assert len(points) <= 404
    assert {(77_777, 1000.0), (3, -1000.0), (0, 0.0)} <= set(points)
    assert points == sorted(points)
    assert len(curve.means(50)) == 50


def test_in_a_pipe_each_curve_is_drawn_with_its_letter() -> None:
    text = Plot([("rising", [(0, 0.0), (10, 10.0)]), ("falling", [(0, 10.0), (10, 0.0)])], width=20, height=5).text()
    assert "a rising" in text
    assert text.splitlines()[0].rstrip().endswith("a")
    assert "\x1b" not in text
    assert "\x1b[34m" in Plot([("x", [(0, 1.0)])], colored=True).text()
