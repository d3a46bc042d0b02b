"""What a bench compares, recommends and shows, without runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS

from dtrain.bench import views
from dtrain.bench.measurement import Measurement
from dtrain.bench.result import BenchResult, Row
from dtrain.bench.variants import Variant, variants
from dtrain.common.errors import UsageError
from dtrain.job.job import Job, Resources
from dtrain.launch import recipe
from dtrain.show import bar_chart
from dtrain.show.bar_chart import NamedValue

TINY = PROGRAMS / "tiny.yaml"


def row(strategy: str, workers: int, speed: float = 0.0, around: float = 0.0, problem: str = "", **numbers: Any) -> Row:
    values = {"strategy": strategy, "resources.workers": str(workers)}
    job = Job("x", resources=Resources(workers=workers))
    variant = Variant(Path("x.yaml"), "x", values, f"{strategy}, {workers}", f"dtrain run x.yaml --set {strategy}", job)
    if problem:
        return Row(variant, problem=problem)
    speeds = (speed - around, speed, speed + around)
    return Row(variant, Measurement(speeds=speeds, **({"loss": 0.5, "samples": 640} | numbers)))


def chosen(*rows: Row) -> tuple[str, str]:
    found = BenchResult(rows, 10).recommendation()
    assert found is not None
    return found.row.variant.label, "\n".join(found.reasons)


def test_efficiency_is_that_of_a_worker_and_known_only_beside_another_number_of_workers() -> None:
    rows = (row("ddp", 1, 100), row("ddp", 2, 150), row("fsdp", 2, 80), row("fsdp", 1, problem="no"))
    result = BenchResult(rows, 10)
    assert [result.efficiency(one) for one in rows] == [1.0, 0.75, None, None]


def test_the_fastest_is_recommended_with_how_much_faster_it_is() -> None:
    label, reasons = chosen(row("ddp", 2, 150), row("fsdp", 2, 100))
    assert label == "ddp, 2"
    assert "150 samples/s, 1.50 times the next (fsdp, 2)" in reasons
    assert "chance" not in reasons


def test_of_equally_fast_ones_the_one_with_fewer_workers_and_then_with_less_memory_is_recommended() -> None:
    label, reasons = chosen(row("ddp", 4, 100), row("ddp", 2, 97))
    assert label == "ddp, 2"
    assert "with 2 workers instead of 4" in reasons
    label, reasons = chosen(row("ddp", 2, 100, memory_bytes=9e9), row("fsdp", 2, 97, memory_bytes=3e9))
    assert label == "fsdp, 2"
    assert "with less memory (3 GB)" in reasons


def test_a_lead_that_may_be_chance_is_none() -> None:
    assert chosen(row("ddp", 4, 100, around=20), row("ddp", 2, 90))[0] == "ddp, 2"
    assert chosen(row("ddp", 4, 100), row("ddp", 2, 90))[0] == "ddp, 4"


def test_what_learns_much_worse_is_not_recommended_however_fast_it_is() -> None:
    label, reasons = chosen(row("ddp", 2, 100), row("bf16", 2, 300, loss=2.0))
    assert label == "ddp, 2"
    assert "bf16, 2 is faster (300 samples/s), but its loss is 2" in reasons
    assert BenchResult((row("ddp", 2, 100, loss=float("nan")),), 10).recommendation() is None


def test_a_late_first_step_is_weighed_against_the_speed() -> None:
    _, reasons = chosen(row("c", 2, 200, first_step_seconds=23.0), row("e", 2, 100, first_step_seconds=3.0))
    assert (
        "its first step comes 20 s later than that of e, 2, which it has caught up with after 4,000 samples" in reasons
    )


def test_a_combination_that_was_not_measured_is_a_row_with_its_reason() -> None:
    result = BenchResult((row("ddp", 2, 1234, memory_bytes=5e8), row("horovod", 2, problem="is not installed")), 10)
    lines = views.text(result, 100, colored=False).splitlines()
    assert lines[1].split() == ["strategy", "workers", "samples/s", "spread", "memory", "loss"]
    assert lines[2].split() == ["ddp", "2", "1,234", "±0%", "500", "MB", "0.5"]
    assert lines[3] == "horovod   2        is not installed"
    page = views.html(result)
    assert "is not installed" in page
    assert "Take ddp, 2" in page


def test_a_reader_is_told_what_disturbed_the_figures() -> None:
    quiet, disturbed = row("ddp", 2, 100), replace(row("fsdp", 2, 90, around=60), others=0.43)
    assert views.notes(BenchResult((quiet,), 10)) == []
    busy, apart = views.notes(BenchResult((quiet, disturbed), 10))
    assert "other programs used processors of this machine during the runs (fsdp, 2: 43%)" in busy
    assert "reports lie far apart (fsdp, 2)" in apart


def test_a_table_that_is_too_wide_for_a_terminal_becomes_two_and_loses_nothing() -> None:
    rows = (row("ddp", 2, 100, memory_bytes=5e8, first_step_seconds=3.0), row("fsdp", 2, problem="cannot " * 9))
    wide = views.text(BenchResult(rows, 10), 40, colored=False).splitlines()
    narrow = views.text(BenchResult(rows, 10), 40, colored=True).splitlines()
    assert all(len(line) <= 40 for line in narrow[1:3])
    assert {word for line in narrow for word in line.split()} >= {word for line in wide[1:3] for word in line.split()}
    assert sum("cannot" in line for line in narrow) == 1


def test_bars_are_as_long_as_their_values() -> None:
    text = bar_chart.text([NamedValue("a", 10, "10"), NamedValue("bb", 5, "5")], 20)
    assert [line.count("█") for line in text.splitlines()] == [12, 6]
    assert bar_chart.svg("t", []) == ""


def test_every_combination_trains_on_as_many_samples_and_says_what_to_type() -> None:
    given = [recipe.override("train.seed=4")]
    found = variants([TINY], ["train.global_batch=32,64", "strategy=ddp,fsdp"], given, Path("runs"), steps=20)
    assert [one.job.train.steps for one in found if one.job] == [40, 40, 20, 20]
    assert found[1].label == "global_batch=32, fsdp"
    assert found[1].command == f"dtrain run {TINY} --set train.seed=4 --set strategy=fsdp --set train.global_batch=32"
    job = found[1].job
    assert job is not None
    assert (job.recovery.restarts, job.track, job.train.evaluate_every, job.train.seed) == (0, (), None, 4)


def test_options_of_a_strategy_may_stand_before_it() -> None:
    found = variants([TINY], ["strategy.compile=true", "strategy=ddp,fsdp,script"], [], Path("runs"), steps=20)
    assert [one.job is not None for one in found] == [True, True, False]
    assert "unknown key 'compile'" in found[2].problem


@pytest.mark.parametrize(
    ("overs", "message"),
    [
        (["strategy=ddp,fdsp"], "--over strategy=fdsp: unknown strategy 'fdsp'. Did you mean 'fsdp'?"),
        (["resources.wokers=1,2"], "--over resources.wokers=1: resources.wokers: unknown key 'wokers'. Did you mean 'workers'?"),
        (["resources.workers"], "--over resources.workers: not of the form"),
        (["resources.workers=1", "resources.workers=2"], "given twice"),
    ],
)  # fmt: skip
def test_mistakes_of_typing_end_a_bench_before_it_begins(overs: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        variants([TINY], overs, [], Path("runs"), steps=20)
    assert message in str(caught.value)
    assert len(caught.value.message.splitlines()) == 1
