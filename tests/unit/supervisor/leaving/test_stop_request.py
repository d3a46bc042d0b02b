"""What the supervisor makes of a stop file, whenever it looks."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from dtrain.control.stop import ask
from dtrain.job.job import Job, PluginChoice
from dtrain.record.folder import create
from dtrain.supervisor.leaving.stop_request import RunFolderWatcher, StopMode, StopRequest


@pytest.mark.parametrize(("how", "mode"), [("now", StopMode.IMMEDIATE), ("leave", StopMode.GRACEFUL)])
def test_a_request_is_read_whole_and_once(how: str, mode: StopMode, tmp_path: Path) -> None:
    """Read as often as possible while it is written again and again: a half of "now" would be another request."""
    run = create(tmp_path, Job("a-run", script="true", folder=str(tmp_path), strategy=PluginChoice("script")))
    found: queue.SimpleQueue[object] = queue.SimpleQueue()
    with run.lock() as lease:
        watcher = RunFolderWatcher(run, lease, found.put)
        over = threading.Event()

        def write() -> None:
            for _ in range(300):
                ask(run, how)
            over.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not over.is_set():
            watcher._poll()
        writer.join()
        watcher._poll()
    requests = [found.get() for _ in range(found.qsize())]
    assert len(requests) == 300, "none takes the place of another"
    assert set(requests) == {StopRequest(mode, "stopped by dtrain stop")}


def test_a_request_that_is_made_while_another_is_taken_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path, Job("a-run", script="true", folder=str(tmp_path), strategy=PluginChoice("script")))
    found: list[object] = []
    read_text = Path.read_text

    def slow(self: Path, *arguments: Any, **named: Any) -> str:
        text = read_text(self, *arguments, **named)
        if text == "leave":
            ask(run, "now")
        return text

    with run.lock() as lease:
        watcher = RunFolderWatcher(run, lease, found.append)
        ask(run, "leave")
        monkeypatch.setattr(Path, "read_text", slow)
        watcher._poll()
        watcher._poll()
    assert [request.mode for request in found if isinstance(request, StopRequest)] == [
        StopMode.GRACEFUL,
        StopMode.IMMEDIATE,
    ]
