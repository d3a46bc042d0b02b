"""The page of a very large run stays small, and shows what matters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.record.events import Event
from dtrain.record.folder import RunDir
from dtrain.report import run_record
from dtrain.report.page import report_page
from dtrain.report.report import text

NODES, RANKS_EACH = 1000, 8
STEPS, EVERY, ATTEMPTS = 100_000, 100, 400


def history() -> Iterator[Event]:
    """8,000 ranks that fail 400 times; one loss stands out."""
    yield events.RunStarted(
        run="big",
        target="gpt.py:GPT",
        strategy="s",
        cluster="c",
        workers=NODES * RANKS_EACH,
        nodes=NODES,
        kind="task",
        global_batch=8192,
    )
    for node in range(NODES):
        yield events.NodeReady(node=f"node{node}", host="h")
    for attempt in range(1, ATTEMPTS + 1):
        begin, end = STEPS * (attempt - 1) // ATTEMPTS, STEPS * attempt // ATTEMPTS
        yield events.AttemptStarted(
            attempt=attempt, step=begin, checkpoint=None, nodes=("n",), workers=NODES * RANKS_EACH
        )
        yield events.WorkersStarted(attempt=attempt, node="node0", pids={str(rank): rank for rank in range(RANKS_EACH)})
        yield events.TrainingStarted(step=begin, total_steps=STEPS, attempt=attempt)
        for step in range(begin + 1, end + 1):
            loss = 99.0 if step == 77_777 else 2.0 + 5.0 / step
            yield events.Metrics(
                step=step,
                values={"loss": loss, "norm": step % 13},
                samples_per_second=9e3 + step % 7,
                data_wait=0.01 * (step % 3),
                attempt=attempt,
            )
            if step % EVERY == 0:
                yield events.Evaluation(step=step, values={"loss": 2.0}, seconds=1e-6, attempt=attempt)
                yield events.CheckpointSaved(
                    step=step, folder="f", bytes=1, weights="ab", stall_seconds=1e-6, attempt=attempt
                )
        yield events.FailureOccurred(kind="node lost", message=f"node node{attempt} was lost", attempt=attempt)
    yield events.RunEnded(exit_code=3, reason="gave up")


def test_a_page_of_8000_ranks_and_100000_steps_is_small_and_keeps_the_extreme(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "big-20260101-000000-abcd")
    run.create_folders()
    log = EventLog(run.events)
    for event in history():
        log.add(event)
    log.close()
    record = run_record.read(run)
    page = report_page(record)
    assert len(page) < 1_000_000
    assert (77_777.0, 99.0) in record.curves.metrics["loss"].thinned(2400)
    assert page.count("<rect") < 4000
    assert "400 times, attempts 1 to 400" in page
    assert "400 times, attempts 1 to 400" in text(record)


def test_a_run_without_events_has_a_page_and_a_report(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "new-20260101-000000-abcd")
    run.create_folders()
    record = run_record.read(run)
    assert run.id in report_page(record)
    assert "0 s" in text(record)
