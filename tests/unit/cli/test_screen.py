"""Lists and texts fit the screen."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import time
from pathlib import Path

from live import DTRAIN, dtrain

from dtrain.cli import summary
from dtrain.control.state import RunRow
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir
from dtrain.show import render

LONG = "digits_with_a_long_name_of_its_own-20261122-084904-24a7"


def rows(now: float) -> list[RunRow]:
    return [
        RunRow("digits-20261122-084904-24a7", "done", 300, 300, 0.0612, "ddp", "local", 2, 1, now - 7300, now - 200),
        RunRow("gpt-20261122-084904-24a7", "recovering", 12, 1000, 2.5, "fsdp", "slurm", 64, 0, now - 90, now - 3),
    ]


def on_terminal(*command: str, columns: int, **variables: str) -> list[str]:
    """The lines that a command prints on a terminal of this width."""
    own, other = pty.openpty()
    given = os.environ | {"COLUMNS": str(columns)} | variables
    subprocess.run([*DTRAIN, *command], stdout=other, env=given, check=False, cwd="/")
    os.close(other)
    text = b""
    with contextlib.suppress(OSError):
        while piece := os.read(own, 1 << 16):
            text += piece
    os.close(own)
    return text.decode().replace("\r\n", "\n").splitlines()


def test_a_list_of_runs_fits_sixty_columns() -> None:
    now = time.time()
    whole = summary.table(rows(now)).splitlines()
    assert whole[0].split() == list(summary.COLUMNS)
    assert whole[1].endswith("2h ago   3m ago")
    for columns in (200, 100, 80, 60, 40, 30, 20):
        lines = summary.table(rows(now), width=columns).splitlines()
        assert max(map(len, lines)) <= columns, columns
        assert len(lines) == 3
    assert summary.table(rows(now), width=60).splitlines()[0].split() == ["run", "state", "step", "loss"]
    assert summary.table(rows(now), width=40).splitlines()[1] == "digits-20261122-084904-24a7  done"
    assert summary.table([RunRow(LONG, "done")], width=30).splitlines()[1] == f"{LONG[:29]}…"


def test_times_in_the_past_are_short() -> None:
    assert [render.ago(elapsed) for elapsed in (-5, 0.4, 59, 61, 3599, 7300, 90000)] == [
        "0s ago",
        "0s ago",
        "59s ago",
        "1m ago",
        "59m ago",
        "2h ago",
        "1d ago",
    ]


def test_a_status_is_folded_and_its_paths_stay_whole(tmp_path: Path) -> None:
    run = RunDir(tmp_path / LONG)
    run.create_folders()
    log = EventLog(run.events)
    log.add(events.RunStarted(run=LONG, target="t", strategy="s", cluster="c", workers=1, nodes=1, kind="task"))
    log.add(events.FailureOccurred(kind="bug", message="one two three " * 20, rank=0, step=23, attempt=1))
    log.add(events.RunEnded(exit_code=1, reason="an error in the user's code is not retried"))
    lines = on_terminal("status", str(run.path), columns=60)
    assert all(len(line) <= 60 for line in lines if str(run.path) not in line), lines
    assert sum(str(run.path) in line for line in lines) == 2
    assert any(len(line) > 200 for line in dtrain("status", str(run.path)).stdout.splitlines()), "not in a pipe"


def test_on_a_terminal_states_have_colours_unless_the_user_wants_none(tmp_path: Path) -> None:
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-1" / "job.json").write_text("{}")
    shown = "\n".join(on_terminal("ps", columns=60, DTRAIN_RUNS=str(tmp_path)))
    assert "\x1b[31munreadable\x1b[0m" in shown
    assert "\x1b" not in "\n".join(on_terminal("ps", columns=60, DTRAIN_RUNS=str(tmp_path), NO_COLOR="1"))


def test_what_is_found_of_a_machine_fits_sixty_columns(tmp_path: Path) -> None:
    lines = on_terminal("doctor", "--runs", str(tmp_path), columns=60)
    assert any("python" in line for line in lines)
    assert all(len(line) <= 60 or " " not in line.strip() for line in lines), lines


def test_what_is_listed_is_listed_for_programs_too() -> None:
    assert "torch" in json.loads(dtrain("init", "--list", "--json").stdout)
    assert {"faults", "phases"} == set(json.loads(dtrain("drill", "--list", "--json").stdout))
    assert "Give --list" in dtrain("init", "--json", check=2).stderr
