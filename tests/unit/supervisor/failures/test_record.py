"""What is logged of a failed attempt: equal errors folded, and the end of the log that belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.supervisor.failures.record import MOST_LINES, folded, log_tail

TRACE = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\nValueError: no\n'


def failure(
    rank: int, kind: FailureKind = FailureKind.BUG, message: str = "ValueError: no", traceback: str = ""
) -> Failure:
    return Failure(kind, message, rank=rank, where="a.py:3 in f", traceback=traceback)


def test_equal_errors_are_folded_whatever_numbers_are_in_them() -> None:
    also = (
        failure(1, message="ValueError: batch 17 at 0x7f00"),
        failure(3, message="ValueError: batch 9 at 0x7e11"),
        failure(3, FailureKind.CASCADE, "connection reset"),
        failure(2, FailureKind.CASCADE, "Connection closed by peer [10.0.0.1]:2222"),
        failure(4, FailureKind.CASCADE, "connection reset by peer"),
        failure(5, message="KeyError: 'x'"),
    )
    same, others = folded(failure(0, message="ValueError: batch 1 at 0x1"), also)
    assert same == (1, 3)
    assert others == {"lost another worker": (2, 4), "bug: KeyError: 'x'": (5,)}


@pytest.mark.parametrize("chained", [False, True])
def test_the_tail_is_what_the_rank_wrote_before_its_traceback_in_its_newest_attempt(
    tmp_path: Path, *, chained: bool
) -> None:
    trace = (
        f"{TRACE}\nDuring handling of the above exception, another exception occurred:\n\n{TRACE}" if chained else TRACE
    )
    lines = [f"line {number}" for number in range(30)]
    text = [
        "--- dtrain: attempt 1, rank 0, from step 0 ---",
        "of long ago",
        "--- dtrain: attempt 2, rank 0, from step 5 ---",
    ]
    log = tmp_path / "log"
    log.write_text("\n".join([*text, *lines, "  0%|  |\r 50%|# |\r100%|##|", "", "dtrain: told elsewhere", trace]))
    found = log_tail(log, failure(0, traceback=trace)).splitlines()
    assert found == [*lines[-(MOST_LINES - 1) :], "100%|##|"]


def test_a_program_whose_error_dtrain_does_not_know_is_shown_to_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"--- dtrain: attempt 1, rank 0, from step 0 ---\nup\n{TRACE}")
    assert log_tail(log, failure(0, message="exited with code 3")).endswith("ValueError: no")
    assert log_tail(tmp_path / "none", failure(0)) == ""


def test_the_stacks_of_a_hang_are_no_part_of_the_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('loading\nThread 0x00007f (most recent call first):\n  File "a.py", line 1 in f\n')
    assert log_tail(log, failure(0, FailureKind.HANG)) == "loading"
