"""Hangs by what agents report: stopped ranks, idle ranks, and ranks that spin; and what is none."""

from __future__ import annotations

import pytest

from dtrain.api.protocol import WorkerLiveness
from dtrain.supervisor.failures.hang_detector import LEAST_SECONDS, TIMES_SLOWEST, HangDetector

HANG_SECONDS = 600.0


def sign(step: int | None, *, idle: float = 0.0, stopped: float = 0.0, quiet: float = 0.0) -> WorkerLiveness:
    return WorkerLiveness(step, idle, stopped, quiet)


def on_gpu(*, quiet: float) -> WorkerLiveness:
    """A rank that spins in a wait for its GPU."""
    return WorkerLiveness(None, 0.0, 0.0, quiet, on_device=True)


def test_cpu_time_is_no_sign_of_life_of_a_program_that_uses_a_gpu() -> None:
    detector = HangDetector(HANG_SECONDS, own_loop=False)
    detector.update({0: on_gpu(quiet=HANG_SECONDS - 1), 1: on_gpu(quiet=HANG_SECONDS)}, 0.0)
    assert detector.find({0, 1}, 1.0) is None
    detector.update({0: on_gpu(quiet=HANG_SECONDS)}, 1.0)
    hang = detector.find({0, 1}, 2.0)
    assert hang is not None
    assert "no step and no output, and on GPUs CPU time is no sign of life, for 600 s" in hang.message


def test_cpu_time_is_a_sign_of_life_before_a_program_uses_its_gpu_and_of_a_task_that_compiles() -> None:
    loading = HangDetector(HANG_SECONDS, own_loop=False)
    loading.update({0: sign(None, quiet=2 * HANG_SECONDS)}, 0.0)
    assert loading.find({0}, 1.0) is None
    compiling = HangDetector(HANG_SECONDS)
    compiling.update({0: on_gpu(quiet=2 * HANG_SECONDS)}, 0.0)
    assert compiling.find({0}, 1.0) is None


def trained(detector: HangDetector, step_seconds: float = 1.0, steps: int = 10, ranks: int = 2) -> float:
    """Steps at a steady pace; the time after them."""
    for rank in range(ranks):
        detector.phase(rank, stepping=True)
    for step in range(steps):
        detector.update({rank: sign(step) for rank in range(ranks)}, step * step_seconds)
    return steps * step_seconds


def spinning(detector: HangDetector, now: float, quiet: float, step: int = 9) -> bool:
    """Whether ranks that use CPU time and make no step are found."""
    detector.update({rank: sign(step, quiet=quiet) for rank in range(2)}, now + quiet)
    return detector.find({0, 1}, now + quiet) is not None


def test_ranks_that_spin_are_found_after_much_longer_than_a_step() -> None:
    detector = HangDetector(HANG_SECONDS)
    now = trained(detector, step_seconds=4.0)
    assert not spinning(detector, now, TIMES_SLOWEST * 4.0 - 1)
    assert spinning(detector, now, TIMES_SLOWEST * 4.0)
    hang = detector.find({0, 1}, 0.0)
    assert hang is not None
    assert "made no step and no output for 200 s (a step took 4 s at most before)" in hang.message


def test_the_rank_that_spins_is_named_and_not_one_that_waits_for_it() -> None:
    detector = HangDetector(HANG_SECONDS)
    now = trained(detector)
    detector.update({0: sign(9, quiet=200.0), 1: sign(9, quiet=200.0, idle=200.0)}, now + 200.0)
    hang = detector.find({0, 1}, 0.0)
    assert hang is not None
    assert hang.rank == 0


def test_quick_steps_do_not_make_it_impatient() -> None:
    detector = HangDetector(HANG_SECONDS)
    now = trained(detector, step_seconds=0.01)
    assert not spinning(detector, now, LEAST_SECONDS - 1)
    assert spinning(detector, now, LEAST_SECONDS)


@pytest.mark.parametrize(("hang_seconds", "step_seconds", "expected"), [(5.0, 0.1, 5.0), (5.0, 10.0, 30.0)])
def test_hang_seconds_is_the_upper_bound_unless_steps_take_as_long(
    hang_seconds: float, step_seconds: float, expected: float
) -> None:
    detector = HangDetector(hang_seconds)
    now = trained(detector, step_seconds)
    assert not spinning(detector, now, expected - 0.5)
    assert spinning(detector, now, expected)


def test_evaluations_and_checkpoints_take_their_own_time() -> None:
    detector = HangDetector(HANG_SECONDS)
    now = trained(detector)
    for rank in (0, 1):
        detector.phase(rank, stepping=False)
    assert not spinning(detector, now, 500.0)
    for rank in (0, 1):
        detector.phase(rank, stepping=True)
    detector.update({rank: sign(10) for rank in range(2)}, now + 501.0)
    assert not spinning(detector, now + 501.0, LEAST_SECONDS - 1, step=10)
    assert spinning(detector, now + 501.0, LEAST_SECONDS, step=10), "the evaluation did not count as a slow step"


def test_before_the_first_steps_and_in_loops_of_ones_own_cpu_time_is_life() -> None:
    detector = HangDetector(HANG_SECONDS)
    for rank in (0, 1):
        detector.phase(rank, stepping=True)
        detector.update({rank: sign(None)}, 0.0)
    detector.update({rank: sign(None, quiet=10_000.0) for rank in range(2)}, 10_000.0)
    assert detector.find({0, 1}, 0.0) is None
    function = HangDetector(HANG_SECONDS)
    for step in range(10):
        function.update({rank: sign(step) for rank in range(2)}, float(step))
    assert not spinning(function, 10.0, 10_000.0)


def test_after_the_first_step_hang_seconds_is_the_limit_until_step_times_are_known() -> None:
    detector = HangDetector(HANG_SECONDS)
    now = trained(detector, steps=2)
    assert not spinning(detector, now, HANG_SECONDS - 1, step=1)
    assert spinning(detector, now, HANG_SECONDS, step=1)


def test_one_rank_that_goes_on_is_waited_for() -> None:
    detector = HangDetector(HANG_SECONDS)
    trained(detector)
    detector.update({0: sign(9, quiet=1e6, idle=1e6), 1: sign(9, quiet=1.0)}, 1e6)
    assert detector.find({0, 1}, 0.0) is None
    assert detector.find({0, 1, 2}, 0.0) is None, "a rank that has not been heard of yet"


def test_stopped_and_idle_ranks_are_found_after_hang_seconds() -> None:
    detector = HangDetector(10.0)
    detector.update({0: sign(None), 1: sign(None, stopped=10.0)}, 10.0)
    hang = detector.find({0, 1}, 0.0)
    assert hang is not None
    assert (hang.rank, "is stopped by a signal for 10 s" in hang.message) == (1, True)
    detector.update({0: sign(3, idle=10.0), 1: sign(2, idle=11.0)}, 20.0)
    hang = detector.find({0, 1}, 0.0)
    assert hang is not None
    assert (hang.rank, hang.step, hang.steps) == (1, 2, {"0": 3, "1": 2})


def test_nothing_hangs_for_a_person_and_the_clocks_begin_anew_afterwards() -> None:
    detector = HangDetector(10.0)
    now = trained(detector)
    for idle in range(0, 1000, 50):
        detector.update({0: sign(9, idle=idle, quiet=idle), 1: sign(9, idle=idle, quiet=idle)}, now + idle)
        detector.suspend(now + idle, suspended=True)
        assert detector.find({0, 1}, now + idle) is None
    later = now + 1000
    detector.suspend(later, suspended=False)
    detector.update({0: sign(9, idle=1005, quiet=1005), 1: sign(9, idle=1005, quiet=1005)}, later + 5)
    assert detector.find({0, 1}, later + 5) is None
    assert detector.find({0, 1}, later + 11) is not None


def test_the_time_in_a_debugger_is_no_step_time() -> None:
    detector = HangDetector(600.0)
    now = trained(detector)
    detector.suspend(now + 5000, suspended=True)
    detector.suspend(now + 5001, suspended=False)
    detector.update({0: sign(10), 1: sign(10)}, now + 5002)
    assert spinning(detector, now + 5003, 601, step=10)
