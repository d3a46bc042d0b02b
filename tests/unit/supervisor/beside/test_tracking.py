"""A tracker that raises, hangs or dies holds up nothing, is said once, and catches up when it is back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, wait_for

from dtrain.common.processes import alive
from dtrain.job.job import Job, PluginChoice
from dtrain.launch import registry
from dtrain.record import event_log, events, folder
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir
from dtrain.supervisor.beside.tracking import Tracking

THIRD_PARTY = str(PROGRAMS / "third_party")
FAILURES = (events.TrackerFailed, events.TrackerWorks)


@pytest.fixture(autouse=True)
def _third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", THIRD_PARTY)
    monkeypatch.syspath_prepend(THIRD_PARTY)
    caches: Any = (registry.installed, registry._entry_points, registry.plugin_class)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()
    sys.modules.pop("elsewhere_tracker", None)


class Tracked:
    """A run without a training, whose events the test logs."""

    def __init__(self, path: Path, hang_seconds: float = 60.0, end_seconds: float = 30.0) -> None:
        self.file = path / "lines"
        self.mood = path / "lines.mood"
        choice = PluginChoice("elsewhere", {"file": str(self.file)})
        self.job = Job("tracked", script="true", folder=str(path), track=(choice,))
        self.run = folder.create(path / "runs", self.job)
        self.seconds = {"hang_seconds": hang_seconds, "end_seconds": end_seconds}
        self.begin()

    def begin(self) -> None:
        """Another supervisor."""
        self.tracking = Tracking(self.run, **self.seconds)
        self.log = EventLog(self.run.events, self.tracking.hear)
        self.log.add(events.RunStarted(run="r", target="t", strategy="ddp", cluster="local", workers=1, nodes=1))
        self.tracking.start(self.job, self.log)

    def train(self, *steps: int) -> None:
        for step in steps:
            self.log.add(events.Metrics(step=step, values={"loss": 1.0}))

    def end(self, code: int = 0) -> None:
        self.log.add(events.RunEnded(exit_code=code, reason="finished"))
        self.tracking.finish()
        self.log.close()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def steps(self) -> list[int]:
        return [line["step"] for line in self.lines() if "train/loss" in line.get("values", {})]

    def said(self) -> list[events.Event]:
        return [event for event in event_log.read(self.run.events) if isinstance(event, FAILURES)]


def assert_all_once(tracked: Tracked) -> None:
    numbers = [line["number"] for line in tracked.lines() if "number" in line]
    assert numbers == list(range(len(numbers)))


def tracker_processes(run: RunDir) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            if b"tracker" in arguments and str(run.path).encode() in arguments:
                found.append(int(path.parent.name))
    return found


def test_everything_is_logged_once_and_the_tracker_is_told_the_end(tmp_path: Path) -> None:
    tracked = Tracked(tmp_path)
    tracked.train(1, 2)
    wait_for(lambda: tracked.steps() == [1, 2], "the first steps")
    tracked.train(3)
    tracked.end()
    assert tracked.steps() == [1, 2, 3]
    assert_all_once(tracked)
    assert tracked.lines()[0] == {"opened": tracked.run.id}
    assert tracked.lines()[-1] == {"closed": 0}
    assert tracked.said() == []


def test_a_run_that_never_trains_is_drawn_nowhere(tmp_path: Path) -> None:
    tracked = Tracked(tmp_path)
    tracked.end(code=1)
    assert tracked.lines() == []
    assert not (tracked.run.path / "trackers").exists()


def test_another_supervisor_goes_on_where_the_first_one_stopped(tmp_path: Path) -> None:
    tracked = Tracked(tmp_path)
    tracked.train(1, 2)
    tracked.end(code=4)
    tracked.begin()
    tracked.train(2, 3)
    tracked.end()
    assert tracked.steps() == [1, 2, 3]
    assert_all_once(tracked)
    assert [line["opened"] for line in tracked.lines() if "opened" in line] == [tracked.run.id] * 2


@pytest.mark.parametrize(
    ("mood", "reason"), [("raise", "ConnectionError: nobody answers"), ("die", "ended with code 7")]
)
def test_a_tracker_that_is_down_is_said_once_and_catches_up(mood: str, reason: str, tmp_path: Path) -> None:
    tracked = Tracked(tmp_path)
    tracked.mood.write_text(mood)
    tracked.train(1, 2)
    wait_for(tracked.said, "the failure")
    tracked.train(3)
    log = tracked.run.logs / "tracker-elsewhere.log"
    if mood == "raise":
        wait_for(lambda: log.read_text().count("Traceback") >= 2, "a second try")
    assert tracked.steps() == []
    tracked.mood.unlink()
    wait_for(lambda: len(tracked.said()) == 2, "that it works again")
    tracked.train(4)
    tracked.end()
    assert tracked.steps() == [1, 2, 3, 4]
    assert_all_once(tracked)
    failed, works = tracked.said()
    assert isinstance(failed, events.TrackerFailed) and reason in failed.error and not failed.ended
    assert isinstance(works, events.TrackerWorks)


def test_a_tracker_that_hangs_is_ended_and_started_anew(tmp_path: Path) -> None:
    tracked = Tracked(tmp_path, hang_seconds=3.0)
    tracked.mood.write_text("hang")
    tracked.train(1)
    wait_for(tracked.said, "the failure")
    assert "has not answered" in str(tracked.said()[0])
    tracked.mood.unlink()
    wait_for(lambda: tracked.steps() == [1], "the step")
    tracked.end()
    assert tracked.lines()[-1] == {"closed": 0}


@pytest.mark.parametrize("mood", ["raise", "hang", "die"])
def test_the_end_waits_for_no_tracker_says_what_is_missing_and_a_resume_logs_it(mood: str, tmp_path: Path) -> None:
    tracked = Tracked(tmp_path, end_seconds=2.0)
    tracked.train(1)
    wait_for(lambda: tracked.steps() == [1], "the first step")
    tracked.mood.write_text(mood)
    tracked.train(2)
    tracked.end()
    last = tracked.said()[-1]
    assert isinstance(last, events.TrackerFailed) and last.ended
    wait_for(lambda: not [pid for pid in tracker_processes(tracked.run) if alive(pid)], "the end of the process")
    assert tracked.steps() == [1]
    tracked.mood.unlink()
    tracked.begin()
    tracked.end()
    assert tracked.steps() == [1, 2]
    assert_all_once(tracked)


def test_the_process_of_a_killed_supervisor_logs_the_rest_and_ends(tmp_path: Path) -> None:
    tracked = Tracked(tmp_path)
    tracked.train(1)
    wait_for(lambda: tracked.steps() == [1], "the first step")
    (pid,) = tracker_processes(tracked.run)
    tracked.train(2)
    tracked.tracking._feeds[0].end()  # what the kernel does with the pipe of a process that is gone
    wait_for(lambda: not alive(pid), "its end")
    assert tracked.steps() == [1, 2]
    assert tracked.lines()[-1] == {"closed": None}
    tracked.end()


def test_the_count_of_a_power_loss_is_no_reason_to_fail(tmp_path: Path) -> None:
    tracked = Tracked(tmp_path)
    tracked.train(1)
    tracked.end()
    (tracked.run.path / "trackers/elsewhere/logged").write_text("")
    tracked.begin()
    tracked.train(2)
    tracked.end()
    assert tracked.steps() == [1, 1, 2]
