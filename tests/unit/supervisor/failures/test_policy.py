"""The policy: which failures are answered with a new attempt, and which end the run."""

from __future__ import annotations

import dataclasses
import signal

from hypothesis import given
from hypothesis import strategies as st

from dtrain.common.errors import Exit
from dtrain.job.failure_kinds import Failure, FailureKind, exit_kind
from dtrain.job.job import Recovery
from dtrain.supervisor.failures.policy import cause, decide

SETTINGS = Recovery(restarts=3, backoff_seconds=1.0)
KILLED = Failure(FailureKind.KILLED, "killed", rank=1, step=10, code=-9)


def at(failure: Failure, step: int, saved: int = 0) -> Failure:
    return dataclasses.replace(failure, step=step, saved_step=saved)


def test_a_bug_is_never_retried() -> None:
    decision = decide([Failure(FailureKind.BUG, "boom", rank=0)], SETTINGS)
    assert (decision.retry, decision.exit_code) == (False, Exit.USER_CODE)


def test_out_of_memory_says_what_to_lower() -> None:
    decision = decide([Failure(FailureKind.OUT_OF_MEMORY, "boom", rank=0)], SETTINGS)
    assert not decision.retry
    assert "train.global_batch" in decision.reason
    assert "expandable_segments" not in decision.reason
    on_gpu = decide(
        [Failure(FailureKind.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory. Tried", rank=0)], SETTINGS
    )
    assert "expandable_segments:True" in on_gpu.reason


def test_the_first_restart_does_not_wait_and_the_next_ones_wait_longer() -> None:
    failures = [at(KILLED, step) for step in (1, 2, 3)]
    assert [decide(failures[: n + 1], SETTINGS).delay_seconds for n in range(3)] == [0, 1, 2]


def test_the_budget_ends_the_run_and_a_checkpoint_restores_it() -> None:
    failures = [at(KILLED, step) for step in range(4)]
    assert decide(failures[:3], SETTINGS).retry
    assert decide(failures, SETTINGS).exit_code is Exit.GAVE_UP
    assert decide([*failures[:3], at(KILLED, 9, saved=5)], SETTINGS).retry


def test_two_equal_failures_without_progress_end_the_run_whatever_the_budget() -> None:
    crash = Failure(FailureKind.CRASH, "SIGSEGV", rank=1, step=7, code=-11)
    assert not decide([crash, crash], dataclasses.replace(SETTINGS, restarts=1000)).retry
    assert decide([crash, at(crash, 7, saved=5)], SETTINGS).retry


def test_kills_of_a_script_are_not_equal_since_its_progress_is_unknown() -> None:
    killed = Failure(FailureKind.KILLED, "killed", rank=1, step=None, code=-9)
    assert decide([killed, killed], SETTINGS).retry


def test_lost_nodes_and_preemptions_do_not_spend_the_crash_budget() -> None:
    losses = [Failure(FailureKind.NODE_LOST, "gone", node="n1")] * 3 + [Failure(FailureKind.PREEMPTED, "moved")] * 3
    assert decide(losses, SETTINGS).retry
    assert decide([*losses, *(at(KILLED, step) for step in range(3))], SETTINGS).retry


def test_a_failure_that_struck_more_often_still_has_an_answer() -> None:
    chance = Failure(FailureKind.TRANSIENT, "the file server hung up")
    assert decide([chance] * 4, SETTINGS).reason == "the same failure struck 4 times with no new checkpoint in between"


def test_nodes_lost_for_ever_end_the_run() -> None:
    assert not decide([Failure(FailureKind.NODE_LOST, "gone", node="n1")] * 100, SETTINGS).retry


FAILURES = st.builds(
    Failure,
    kind=st.sampled_from(FailureKind),
    message=st.sampled_from(["a", "b 12"]),
    rank=st.integers(0, 3),
    step=st.none() | st.integers(0, 5),
    code=st.sampled_from([1, -9, -11]),
    saved_step=st.integers(0, 3),
)


@given(st.lists(FAILURES, min_size=1, max_size=30), st.integers(0, 5))
def test_every_history_has_an_answer(failures: list[Failure], restarts: int) -> None:
    decision = decide(failures, Recovery(restarts=restarts))
    assert decision.retry == (decision.exit_code is Exit.DONE)
    assert 0 <= decision.delay_seconds < float("inf")
    assert decision.reason


@given(st.lists(FAILURES, min_size=60, max_size=60), st.integers(0, 3))
def test_no_history_without_progress_goes_on_for_ever(failures: list[Failure], restarts: int) -> None:
    stuck = [dataclasses.replace(failure, saved_step=0) for failure in failures]
    assert any(not decide(stuck[: n + 1], Recovery(restarts=restarts)).retry for n in range(len(stuck)))


def test_signals_and_codes_are_classified() -> None:
    assert exit_kind(3, out_of_memory=False) == (FailureKind.BUG, "exited with code 3")
    assert exit_kind(-signal.SIGKILL, out_of_memory=False)[0] is FailureKind.KILLED
    assert exit_kind(-signal.SIGKILL, out_of_memory=True)[0] is FailureKind.OUT_OF_MEMORY
    assert exit_kind(-signal.SIGSEGV, out_of_memory=False)[0] is FailureKind.CRASH


def test_a_cascade_is_never_the_cause_where_an_initiator_is_known() -> None:
    cascade = Failure(FailureKind.CASCADE, "reset by peer", rank=0)
    assert cause([cascade, KILLED]) is KILLED
    assert cause([cascade, Failure(FailureKind.BUG, "x", rank=2), cascade]).rank == 2
    assert cause([cascade]) is cascade


def test_a_kill_from_outside_explains_the_odd_errors_of_the_others() -> None:
    assert cause([Failure(FailureKind.BUG, "cannot unpickle", rank=0), KILLED]) is KILLED


def test_equal_kills_are_chance_twice_and_end_the_run_at_the_third() -> None:
    kill = dataclasses.replace(KILLED, rank=1, step=7, code=-9)
    assert decide([kill], Recovery()).retry
    assert decide([kill, kill], Recovery()).retry
    decision = decide([kill, kill, kill], Recovery())
    assert not decision.retry
    assert "three times" in decision.reason


def test_equal_crashes_end_the_run_at_the_second() -> None:
    crash = Failure(FailureKind.CRASH, "crashed with SIGSEGV", rank=1, step=7, code=-11)
    assert not decide([crash, crash], Recovery()).retry
