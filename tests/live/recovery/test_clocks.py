"""A log that was written by a clock which is ahead changes nothing in what a run does."""

from __future__ import annotations

import json
from pathlib import Path

from live import dtrain, finished, start

PROGRAM = (
    "import pathlib; path = pathlib.Path('times'); path.write_text(path.read_text() + 'x' if path.exists() else 'x')\n"
)


def test_a_run_that_ended_in_the_future_is_run_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "recipe.yaml").write_text("name: clock\nscript: program.py\n")
    live = finished(str(tmp_path / "recipe.yaml"), runs=tmp_path / "runs")
    lines = [json.loads(line) for line in live.run.events.read_text().splitlines()]
    ahead = (json.dumps(line | {"time": line["time"] + 600}, separators=(",", ":")) for line in lines)
    live.run.events.write_text("".join(f"{line}\n" for line in ahead))
    dtrain("supervise", str(live.run.path))
    assert [event["attempt"] for event in live.events("attempt_started")] == [1, 2]
    assert (tmp_path / "times").read_text() == "xx"


def test_two_supervisors_that_are_started_at_once_run_it_once(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM + "import time; time.sleep(3)\n")
    (tmp_path / "recipe.yaml").write_text("name: clock\nscript: program.py\n")
    with start(str(tmp_path / "recipe.yaml"), runs=tmp_path / "runs") as live:
        live.wait_event("workers_started")
        dtrain("supervise", str(live.run.path))
        live.finish()
    assert (tmp_path / "times").read_text() == "x"
