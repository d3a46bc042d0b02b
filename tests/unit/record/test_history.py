"""What a later supervisor asks of the log of earlier ones depends on the order of its lines, not on anybody's clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtrain.common.errors import Exit
from dtrain.record import history
from dtrain.record.events import Event, Requeued, RunEnded, RunStarted
from dtrain.record.folder import RunDir, Submitted

AHEAD = 4e9
"""A time far in the future."""
STARTED = RunStarted(run="r", kind="script", target="t", strategy="s", cluster="c", workers=1, nodes=1, global_batch=0)


def log(run: RunDir, *events: Event, clock: float = AHEAD) -> None:
    with run.events.open("a") as file:
        for event in events:
            file.write(json.dumps(event.to_dict() | {"time": clock}, separators=(",", ":")) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_an_end_that_was_known_before_is_no_end_of_meanwhile(run: RunDir) -> None:
    log(run, STARTED, RunEnded(exit_code=4, reason="stopped"))
    known = run.log_bytes()
    assert history.ended_after(run, known) is None
    log(run, STARTED, RunEnded(exit_code=0, reason="finished"), clock=0.0)
    assert history.ended_after(run, known) is Exit.DONE


def test_a_run_is_not_taken_for_stuck_because_of_a_requeue_before_a_person_resumed_it(run: RunDir) -> None:
    log(run, Requeued(step=20, words="queued again"))
    assert history.requeued_at(run) == 20
    run.write_submitted(Submitted("slurm", "7", time=0.0, position=run.log_bytes()))
    assert history.requeued_at(run) is None
    log(run, Requeued(step=40, words="queued again"), clock=0.0)
    assert history.requeued_at(run) == 40
