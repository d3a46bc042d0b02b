"""What a run without `notify` keeps of its events: nothing."""

from __future__ import annotations

import gc
import json
from pathlib import Path

from dtrain.job.job import Job, Notify
from dtrain.record.event_log import EventLog
from dtrain.record.events import Progress, RunEnded
from dtrain.record.folder import RunDir
from dtrain.supervisor.beside.notifications import Notifications


def test_nobody_to_tell_keeps_no_events(tmp_path: Path) -> None:
    notifications = Notifications(RunDir(tmp_path))
    log = EventLog(tmp_path / "events.jsonl", notifications.hear)
    notifications.start(Job(name="x", script="true"))
    for step in range(1000):
        log.add(Progress(attempt=4711, step=step))
    log.close()
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Progress and one.attempt == 4711]
    notifications.finish()


def test_what_an_earlier_supervisor_logged_is_not_told_again_whatever_its_clock_said(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.create_folders()
    (tmp_path / "told").touch()
    ended = {"time": 4e9, "event": "end", "exit_code": 4, "reason": "stopped", "report": {}}
    run.events.write_text(json.dumps(ended) + "\n")
    notifications = Notifications(run)
    log = EventLog(run.events, notifications.hear)
    wanted = Notify(command=f"echo $DTRAIN_NOTICE_EVENT >> {tmp_path}/told", when=("stopped", "finished"))
    notifications.start(Job(name="x", script="true", folder=str(tmp_path), notify=wanted))
    log.add(RunEnded(exit_code=0, reason="finished"))
    log.close()
    notifications.finish()
    assert (tmp_path / "told").read_text() == "finished\n"
