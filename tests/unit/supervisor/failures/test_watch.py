"""What is seen of the ranks of an attempt."""

from __future__ import annotations

from pathlib import Path

from dtrain.api.protocol import Heartbeat, WorkerLiveness
from dtrain.job.job import Recovery
from dtrain.record.event_log import EventLog
from dtrain.supervisor.failures.watch import Watch


def test_a_step_ahead_is_one_that_no_rank_is_at_when_it_hears_of_it(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    watch = Watch(1, Recovery(), {0: "node0", 1: "node0"}, log)
    assert watch.step_ahead() == 3, "before any rank has a step"
    watch.beat("node0", Heartbeat(1, {"0": WorkerLiveness(100, 0.0, 0.0), "1": WorkerLiveness(101, 0.0, 0.0)}), 0.0)
    watch.rate = 0.01
    assert watch.step_ahead() == 104
    watch.rate = 50.0
    assert watch.step_ahead() == 201
    log.close()
