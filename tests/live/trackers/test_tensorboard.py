"""`dtrain tensorboard` serves runs of this machine and of remote storage, on the loopback alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live import DTRAIN, PROGRAMS, dtrain, finished, process_tree, running, start, wait_for

TINY = str(PROGRAMS / "tiny.yaml")
TRACKED = ("--set", "track=null")
"""As it is by default."""
Page = Callable[[str], Any]


@contextmanager
def served(log: Path, *arguments: str) -> Iterator[Page]:
    """What gets the data of a page of TensorBoard."""
    command = [*DTRAIN, "tensorboard", "--port", "0", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd="/", start_new_session=True)
    pids: set[int] = set()
    try:

        def found() -> re.Match[str] | None:
            assert process.poll() is None, log.read_text()
            return re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())

        address = wait_for(found, "TensorBoard")[0]
        pids = process_tree(process.pid)

        def page(name: str) -> Any:
            with urllib.request.urlopen(f"{address}data/{name}") as answer:
                return json.load(answer)

        yield page
        assert listening(pids) <= {"0100007F"}
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
        wait_for(lambda: not running(pids), "the end of TensorBoard", 15)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def listening(pids: set[int]) -> set[str]:
    """Addresses, as the kernel writes them, that these processes listen on."""
    sockets = {str(path.readlink()) for pid in pids for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def losses(page: Page, run: str) -> list[list[float]]:
    found: list[list[float]] = page(f"plugin/scalars/scalars?run={run}&tag=train/loss")
    return found


def test_all_runs_and_those_that_come_are_shown_and_nothing_else_can_reach_them(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = finished(TINY, *TRACKED, runs=runs)
    other = finished(TINY, "--set", "track=[csv]", "--set", "train.steps=5", runs=runs)
    with served(tmp_path / "log", "--runs", str(runs)) as page:
        wait_for(lambda: set(page("runs")) == {first.run.id, other.run.id}, "both runs")
        assert [step for _, step, _ in losses(page, first.run.id)] == list(range(1, 61))
        # It has no event files of its own: they are made of its event log.
        assert [step for _, step, _ in losses(page, other.run.id)] == list(range(1, 6))
        with start(TINY, *TRACKED, "--set", "params.pause=0.02", runs=runs) as live:
            wait_for(lambda: live.run.id in page("runs"), "the run that is under way")
            live.finish()


def test_a_run_on_remote_storage_is_shown(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    live = finished(TINY, "--set", f"storage.url={url}", runs=tmp_path / "runs")
    with served(tmp_path / "log", f"{url}/{live.run.id}", "--runs", str(tmp_path / "elsewhere")) as page:
        wait_for(lambda: page("runs") == [live.run.id], "the run")
        assert {int(step): value for _, step, value in losses(page, live.run.id)}.keys() == live.losses().keys()


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    done = dtrain("tensorboard", "--runs", str(tmp_path / "none"), check=2)
    assert "no runs in" in done.stderr
    done = dtrain("tensorboard", "nothing", "--runs", str(tmp_path), check=2)
    assert "there are no runs" in done.stderr
