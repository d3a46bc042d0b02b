"""Which moments of a run are told, and that each is told once."""

from __future__ import annotations

from dtrain.record import events
from dtrain.record.events import Event
from dtrain.supervisor.beside.notices import Notices

RUN = events.RunStarted(
    run="r", kind="task", target="t", strategy="ddp", cluster="local", workers=2, nodes=1, global_batch=8
)
KILLED = events.FailureOccurred(attempt=1, kind="killed", message="rank 1 killed by SIGKILL")
HANG = events.HangDetected(attempt=1, rank=0, steps={})


def attempt(number: int) -> Event:
    return events.AttemptStarted(attempt=number, step=0, checkpoint=None, nodes=("n",), workers=2, processes=2)


def metrics(number: int, step: int) -> Event:
    return events.Metrics(attempt=number, step=step, values={"loss": 0.5})


def end(code: int) -> Event:
    return events.RunEnded(exit_code=code, reason="why", report={})


def told(*history: Event) -> list[tuple[str, str]]:
    notices = Notices()
    return [(notice.moment, notice.text) for event in history for notice in notices.add(event)]


def moments(*history: Event) -> list[str]:
    return [moment for moment, _ in told(*history)]


def test_a_run_that_recovers() -> None:
    training = events.TrainingStarted(attempt=1, step=0, total_steps=20, samples=8)
    found = told(RUN, attempt(1), training, metrics(1, 5), KILLED, attempt(2), metrics(2, 6), metrics(2, 7), end(0))
    assert found == [
        ("started", "r started: on 2 workers, n"),
        ("recovered", "r recovered: attempt 2 trains, after: rank 1 killed by SIGKILL\nstep 6 of 20, loss 0.5"),
        (
            "finished",
            "r finished: why\nstep 7 of 20, loss 0.5\n1 failures, the last one: rank 1 killed by SIGKILL",
        ),
    ]


def test_a_report_of_the_attempt_that_failed_is_no_recovery() -> None:
    assert moments(RUN, attempt(1), KILLED, metrics(1, 5), end(3)) == ["started", "failed"]


def test_a_script_has_recovered_when_it_runs_again() -> None:
    script = events.RunStarted(
        run="r", kind="script", target="t", strategy="script", cluster="local", workers=2, nodes=1, global_batch=0
    )
    again = events.WorkersStarted(attempt=2, node="n", pids={})
    assert moments(script, attempt(1), KILLED, attempt(2), again, again) == ["started", "recovered"]


def test_a_hang_is_told_once_an_attempt() -> None:
    assert moments(RUN, attempt(1), HANG, HANG) == ["started", "stalled"]


def test_a_requeue_is_no_end_and_the_next_supervisor_goes_on() -> None:
    requeued = events.Requeued(step=5, words="scontrol requeue 7")
    found = moments(RUN, attempt(1), requeued, end(4), RUN, attempt(2), end(0))
    assert found == ["started", "requeued", "finished"]


def test_every_end_has_its_moment() -> None:
    assert [moments(RUN, end(code))[-1] for code in (0, 1, 3, 4, 70, 130)] == [
        "finished", "failed", "failed", "stopped", "failed", "stopped",
    ]  # fmt: skip
