"""What a run measured of itself, from events that are made up."""

from __future__ import annotations

import pytest

from dtrain.bench.measurement import Measurement, of_events, together
from dtrain.record import events
from dtrain.record.sample_ledger import Entry


def history(*speeds: float, processes: int = 2, memory: tuple[int, ...] = (100, 140)) -> list[events.Event]:
    """A report every 10 steps."""
    return [
        events.RunStarted(
            time=50.0, run="r", target="t", strategy="s", cluster="c", workers=2, nodes=1, global_batch=8
        ),
        events.AttemptStarted(
            time=51.0, attempt=1, step=0, checkpoint=None, nodes=("n",), workers=2, processes=processes
        ),
        events.TrainingStarted(time=60.0, step=0, total_steps=10 * len(speeds), sanity_check_seconds=0.5, attempt=1),
        *(
            events.Metrics(step=10 * number, values={"loss": 1 / number}, samples_per_second=speed, data_wait=wait)
            for number, (speed, wait) in enumerate(zip(speeds, (0.9, 0.0, 0.1, 0.3, 0.0), strict=False), start=1)
        ),
        events.Evaluation(step=10 * len(speeds), values={"loss": 0.2, "accuracy": 0.9}),
        *(events.MemoryUsed(rank=rank, bytes=used) for rank, used in enumerate(memory)),
    ]


def ledger(first: float, each: float, steps: int) -> list[Entry]:
    return [Entry(step, 0, 8, 0, first + each * step) for step in range(steps)]


def test_the_warm_up_counts_neither_for_the_speed_nor_for_the_data_wait() -> None:
    found = of_events(history(1.0, 100.0, 200.0, 400.0), [], warm_up=10)
    assert found.speeds == (100.0, 200.0, 400.0)
    assert found.samples_per_second == 200.0
    assert found.data_wait == pytest.approx((0.0 / 100 + 0.1 / 200 + 0.3 / 400) / (1 / 100 + 1 / 200 + 1 / 400))


def test_compiling_is_what_the_sanity_check_and_the_first_step_took_beyond_a_later_one() -> None:
    found = of_events(history(1.0, 100.0), ledger(first=63.0, each=0.25, steps=20), warm_up=10)
    assert found.first_step_seconds == 13.0
    assert found.compile_seconds == pytest.approx(0.5 + 3.0 - 0.25)


def test_memory_is_that_of_all_processes_also_of_those_that_did_not_say() -> None:
    assert of_events(history(1.0, 1.0), [], 0).memory_bytes == 240
    assert of_events(history(1.0, 1.0, processes=10), [], 0).memory_bytes == 1200
    assert of_events(history(1.0, 1.0, memory=()), [], 0).memory_bytes is None


def test_losses_are_known_by_samples() -> None:
    found = of_events(history(1.0, 1.0), [], 0)
    assert found.losses == ((80, 1.0), (160, 0.5))
    assert (found.samples, found.loss, dict(found.held_out)) == (160, 0.5, {"loss": 0.2, "accuracy": 0.9})


def test_a_run_that_did_not_train_measured_nothing() -> None:
    assert of_events(history(1.0)[:2], [], 0) == Measurement()


def test_repeated_runs_are_taken_together() -> None:
    one, other = (
        of_events(history(1.0, *speeds), ledger(first, 0.1, 20), 10)
        for speeds, first in (((10, 20), 61.0), ((30,), 65.0))
    )
    both = together([one, other])
    assert both.speeds == (10, 20, 30)
    assert both.first_step_seconds == 13.0
