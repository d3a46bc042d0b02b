"""What a run without `notify` keeps of its events: nothing."""

from __future__ import annotations

import gc
from pathlib import Path

from dtrain.job.job import Job
from dtrain.record.event_log import EventLog
from dtrain.record.events import Progress
from dtrain.record.folder import RunDir
from dtrain.supervisor.beside.notifications import Notifications


def test_nobody_to_tell_keeps_no_events(tmp_path: Path) -> None:
    notifications = Notifications(RunDir(tmp_path))
    log = EventLog(tmp_path / "events.jsonl", notifications.hear)
    notifications.start(Job(name="x", script="true"))
    for step in range(1000):
        log.add(Progress(step=step))
    log.close()
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Progress]
    notifications.finish()
